"use strict";
// Joins a video with the timeline, the images and the table: each seeks, and a line marks the time in all of them.
// Every event looks up its elements below the root anew, because the page of `openavs serve` exchanges them.
((root) => {
  const find = (selector) => root.querySelector(selector);
  const getVideo = () => find(".player video");
  const getTimeline = () => find(".time[data-end]"); // Gradio has a .time, too
  const getEnd = () => Number(getTimeline().dataset.end);

  const addPlayhead = (timeline) => {
    const head = document.createElement("div");
    head.className = "playhead";
    return timeline.appendChild(head);
  };
  const showInSlider = (time) => {
    const slider = find(".seek input"); // in reports only
    if (!slider) return;
    slider.value = time;
    slider.setAttribute("aria-valuetext", `${time.toFixed(1)} s`);
    find(".seek output").value = `${time.toFixed(1)} s`;
  };
  const show = () => {
    const video = getVideo();
    const timeline = getTimeline();
    if (!video || !timeline) return;
    for (const element of [timeline, find(".player")]) element.classList.add("plays");
    const time = video.currentTime;
    const head = timeline.querySelector(".playhead") ?? addPlayhead(timeline);
    head.style.left = `${100 * Math.min(time / getEnd(), 1)}%`;
    showInSlider(time);
    for (const element of root.querySelectorAll("[data-start]")) {
      const isNow = Number(element.dataset.start) <= time && time < Number(element.dataset.stop);
      element.classList.toggle("now", isNow);
    }
  };
  const follow = () => {
    show();
    if (getVideo()?.paused === false) requestAnimationFrame(follow);
  };
  const seek = (time) => {
    const video = getVideo();
    if (!video) return;
    video.currentTime = Math.min(Math.max(time, 0), video.duration || getEnd());
    show();
  };

  // Events of media do not bubble: they are caught on their way down.
  const onVideo = (event, act) =>
    root.addEventListener(event, ({ target }) => target === getVideo() && act(), true);
  onVideo("play", follow);
  for (const event of ["timeupdate", "seeked", "loadedmetadata"]) onVideo(event, show);
  onVideo("error", () => find(".player").classList.add("absent"));
  root.addEventListener("input", ({ target }) => {
    if (target.matches(".seek input")) seek(Number(target.value));
  });
  root.addEventListener("click", (event) => {
    const lane = event.target.closest(".time[data-end] svg");
    const link = event.target.closest("a[data-time]");
    if (lane) {
      const box = lane.getBoundingClientRect();
      seek((getEnd() * (event.clientX - box.left)) / box.width);
    }
    if (link) {
      event.preventDefault();
      seek(Number(link.dataset.time));
      getVideo()?.scrollIntoView({ block: "nearest" });
    }
  });
  const showInNewTimeline = () => {
    if (getTimeline()?.matches(".plays") === false) show();
  };
  new MutationObserver(showInNewTimeline).observe(root, { childList: true, subtree: true });
  show();
})(document);
