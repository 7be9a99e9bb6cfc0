"use strict";
// Joins the video with the timeline, the images and the table: each seeks, and a line marks the time in all of them.
(() => {
  const video = document.querySelector("video");
  const timeline = document.querySelector(".time");
  const slider = document.querySelector(".seek input");
  const output = document.querySelector(".seek output");
  const end = Number(timeline.dataset.end);
  const head = timeline.appendChild(document.createElement("div"));
  head.className = "playhead";
  const marks = [...document.querySelectorAll("[data-start]")].map((element) => ({
    element,
    start: Number(element.dataset.start),
    stop: Number(element.dataset.stop),
  }));

  const show = () => {
    const time = video.currentTime;
    head.style.left = `${100 * Math.min(time / end, 1)}%`;
    slider.value = time;
    output.value = `${time.toFixed(1)} s`;
    slider.setAttribute("aria-valuetext", output.value);
    for (const { element, start, stop } of marks) element.classList.toggle("now", start <= time && time < stop);
  };
  const follow = () => {
    show();
    if (!video.paused) requestAnimationFrame(follow);
  };
  const seek = (time) => {
    video.currentTime = Math.min(Math.max(time, 0), video.duration || end);
    show();
  };

  video.addEventListener("play", follow);
  for (const event of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(event, show);
  video.addEventListener("error", () => document.querySelector(".player").classList.add("absent"));
  slider.addEventListener("input", () => seek(Number(slider.value)));
  timeline.addEventListener("click", (event) => {
    const lane = event.target.closest("svg");
    if (lane === null) return;
    const box = lane.getBoundingClientRect();
    seek((end * (event.clientX - box.left)) / box.width);
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-time]");
    if (link === null) return;
    event.preventDefault();
    seek(Number(link.dataset.time));
    video.scrollIntoView({ block: "nearest" });
  });
  document.documentElement.classList.add("plays");
  show();
})();
