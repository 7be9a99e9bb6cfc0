() => { // behavior that Gradio has no property for
  document.documentElement.lang = 'en';

  // Screen readers: the preview of the video has a name, and progress is announced.
  const label = () => document.querySelectorAll('#oa-video video:not([aria-label])').forEach(
    video => video.setAttribute('aria-label', 'Input video'));
  new MutationObserver(label).observe(document.body, {childList: true, subtree: true});
  const progress = document.getElementById('oa-progress');
  if (progress) { progress.setAttribute('role', 'status'); progress.setAttribute('aria-live', 'polite'); }

  // Another video of the same clip continues at the position of the last one.
  const start = {time: 0, isPlaying: false, rate: 1};
  let last = {src: '', ...start};
  const save = ({target: {src, dataset, currentTime: time, paused, playbackRate: rate}}) => {
    if (src && src === last.src) last = {src, clip: dataset.clip, time, isPlaying: !paused, rate};
  };
  for (const event of ['timeupdate', 'seeking', 'play', 'pause', 'ratechange'])
    document.addEventListener(event, save, true);
  document.addEventListener('loadedmetadata', ({target}) => {
    if (!target.closest('#oa-player') || target.src === last.src) return;
    last = {...(target.dataset.clip === last.clip ? last : start), clip: target.dataset.clip, src: target.src};
    target.currentTime = last.time;
    target.playbackRate = last.rate;
    if (last.isPlaying) target.play().catch(() => {});
  }, true);
}
