// Click a word to hear it; the word being spoken is highlighted; arrow keys move between words.
"use strict";

(() => {
  let stopAt = null; // seconds at which playback ends, after a click on a word

  // The audio element that belongs to a transcript: by selector, or inside the same entry of a list.
  const audioOf = (said) => {
    const selector = said.dataset.audio;
    return said.closest(".entry")?.querySelector("audio") ?? document.querySelector(selector || "#player audio");
  };

  const playWord = (word) => {
    const audio = audioOf(word.closest(".said"));
    if (!audio) return;
    const start = Math.max(0, Number(word.dataset.start) - 0.05);
    const play = () => {
      audio.currentTime = start;
      stopAt = Math.max(Number(word.dataset.end) + 0.1, start + 0.25);
      audio.play().catch(() => {});
      follow(audio);
    };
    if (audio.readyState >= 1) play();
    else {
      audio.addEventListener("loadedmetadata", play, { once: true });
      audio.load();
    }
  };

  const mark = (audio) => {
    const now = audio.currentTime;
    for (const said of document.querySelectorAll(".said")) {
      if (audioOf(said) !== audio) continue;
      for (const word of said.querySelectorAll(".word")) {
        const speaks = !audio.paused && now >= Number(word.dataset.start) && now < Number(word.dataset.end);
        word.classList.toggle("speaking", speaks);
      }
    }
  };

  const follow = (audio) => {
    if (audio.followed) return;
    audio.followed = true;
    const step = () => {
      if (stopAt !== null && audio.currentTime >= stopAt) {
        stopAt = null;
        audio.pause();
      }
      mark(audio);
      if (audio.paused || !audio.isConnected) audio.followed = false;
      else requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  };

  document.addEventListener("play", (event) => {
    for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
    follow(event.target);
  }, true);
  document.addEventListener("seeking", (event) => {
    if (event.target.paused) stopAt = null;
  }, true);

  document.addEventListener("click", (event) => {
    const word = event.target.closest?.(".word");
    if (word && !String(getSelection())) playWord(word);
  });

  document.addEventListener("keydown", (event) => {
    const word = event.target.closest?.(".word");
    if (!word) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      playWord(word);
      return;
    }
    const words = [...word.closest(".said").querySelectorAll(".word")];
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = step ? words[words.indexOf(word) + step] : { Home: words[0], End: words.at(-1) }[event.key];
    if (!to) return;
    event.preventDefault();
    for (const one of words) one.tabIndex = one === to ? 0 : -1; // one stop of the Tab key per transcript
    to.focus();
  });

  // A list that is drawn anew keeps the entries open that were.
  const open = new Set();
  document.addEventListener("toggle", (event) => {
    const entry = event.target;
    if (entry.dataset?.entry === undefined || !entry.isConnected) return;
    if (entry.open) open.add(entry.dataset.entry);
    else open.delete(entry.dataset.entry);
  }, true);
  // What Gradio's own elements lack for screen readers.
  const describe = () => {
    for (const line of document.querySelectorAll("#status:not([aria-live])")) line.setAttribute("aria-live", "polite");
    for (const button of document.querySelectorAll("button.playback")) {
      const label = `${button.textContent.trim()}: playback speed, change it`; // its name has to contain what it shows
      if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
    }
  };
  const reopen = () => {
    for (const entry of document.querySelectorAll("details.entry:not([open])")) {
      if (open.has(entry.dataset.entry) && !entry.dataset.restored) entry.open = true;
      entry.dataset.restored = "true";
    }
  };
  new MutationObserver(() => {
    describe();
    reopen();
  }).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["aria-label"] });

  // A browser takes WebM, MP4 and the like for video, which Gradio's audio input refuses: say that it is audio. What holds none is
  // refused by the server, in words.
  const asAudio = (file) =>
    file.type.startsWith("audio/") ? file : new File([file], file.name, { type: "audio/x-unknown", lastModified: file.lastModified });
  const give = (input, files) => {
    const given = new DataTransfer();
    for (const file of files) given.items.add(asAudio(file));
    input.files = given.files;
  };
  document.addEventListener("change", (event) => {
    if (event.target.matches?.("#clip input[type=file]")) give(event.target, [...event.target.files]);
  }, true);
  document.addEventListener("click", (event) => {
    if (event.target.matches?.("#clip input[type=file]")) event.target.accept = "audio/*,video/webm,video/mp4,video/ogg,.webm,.mp4,.mkv,.opus";
  }, true);
  document.addEventListener("drop", (event) => {
    const input = event.target.closest?.("#clip")?.querySelector("input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    give(input, [...event.dataTransfer.files].slice(0, 1));
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);
})();
