() => { // behavior that Gradio has no property for
  document.documentElement.lang = 'en';

  // Screen readers: the preview of the video has a name, and progress is announced.
  const names = {'#oa-video video': 'Input video', '#oa-command textarea': 'The same on the command line'};
  const label = () => Object.entries(names).forEach(([place, name]) => document.querySelectorAll(
    `${place}:not([aria-label])`).forEach(element => element.setAttribute('aria-label', name)));
  new MutationObserver(label).observe(document.body, {childList: true, subtree: true});
  const progress = document.getElementById('oa-progress');
  if (progress) { progress.setAttribute('role', 'status'); progress.setAttribute('aria-live', 'polite'); }

  // The player of another clip begins at its best frame; on a phone, it is brought into view.
  document.addEventListener('loadedmetadata', ({target}) => {
    const place = target.closest('[data-begin]');
    if (!place) return;
    target.currentTime = Number(place.dataset.begin);
    if (matchMedia('(max-width: 40rem)').matches) place.scrollIntoView({block: 'nearest'});
  }, true);

  // Other masks of the same clip go into its player, which keeps position, opacity and hidden objects.
  let last = null;
  new MutationObserver(() => {
    const script = document.querySelector('#oa-data script'), player = document.querySelector('#oa-player .player');
    if (!script || !player || script === last) return;
    last = script;
    player.dispatchEvent(new CustomEvent('openavs:data', {detail: JSON.parse(script.textContent), bubbles: true}));
  }).observe(document.body, {childList: true, subtree: true});
}
