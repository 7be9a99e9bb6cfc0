// Sends the corrections of the bar below the player: `element` is its place, `trigger` and `watch` are Gradio's.
const player = document.getElementById('oa-player');
const bar = () => element.querySelector('details');
const value = name => bar().querySelector(`[name=${name}]`).value;
const send = change => trigger('submit', {run: Number(bar().dataset.run), ...change});
const track = () => (/^\d+$/.test(value('track')) ? Number(value('track')) : null);
const actions = {
  reject: () => ({track: track()}),
  rename: () => ({track: track(), value: value('word')}),
  span: () => ({track: track(), value: [Number(value('start')), Number(value('end'))]}),
  keep: () => JSON.parse(value('candidate')),
  undo: () => ({}),
};
element.addEventListener('click', ({target}) => {
  if (Object.hasOwn(actions, target.name ?? '')) send({action: target.name, ...actions[target.name]()});
});

// While the bar is open, a click on the picture corrects the masks; those between the sampled frames belong to none.
player.addEventListener('openavs:point', event => {
  if (!bar()?.open) return;
  event.preventDefault();
  const {x, y, frame, sampled, time, object, shift} = event.detail, video = player.querySelector('video');
  video?.pause();
  if (frame === null) return;
  if (Math.abs(time - sampled) > 0.03) video.currentTime = sampled;
  else {
    const action = shift || takes ? 'remove point' : 'add point', isNew = value('track') === 'new';
    send({action, frame, track: track(), object: isNew ? null : object, phrase: isNew ? value('word') : '', value: [x, y]});
  }
});

// A new bar of the same result is as the one before: open, checked, with the focus on the same control.
let opened = null, focused = null, takes = false;
element.addEventListener('change', ({target}) => { if (target.name === 'takes') takes = target.checked; });
element.addEventListener('toggle', ({target}) => { opened = target.open ? target.dataset.run : null; }, true);
element.addEventListener('focusin', ({target}) => { focused = target.name ?? null; });
watch('value', () => {
  if (!bar() || bar().dataset.run !== opened) { takes = false; return; }
  bar().open = true;
  bar().querySelector('[name=takes]').checked = takes;
  const control = focused && bar().querySelector(`[name=${focused}]`);
  if (control && document.activeElement === document.body) (control.disabled ? bar().querySelector('summary') : control).focus();
});
