"use strict";
// The page is whole without this: it shows the nearest point's text beside the pointer, hides systems, and opens what is folded for print.
(() => {
  document.documentElement.classList.add("script");
  const tip = document.createElement("div");
  tip.id = "tip";
  document.body.append(tip);
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.classList.add("on");
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18) + "px";
  };
  const hide = () => tip.classList.remove("on");
  for (const svg of document.querySelectorAll("svg.panel, svg.bars")) {
    // The browser's own tip would come on top of ours.
    const spots = [...svg.querySelectorAll("title")].map((title) => {
      const spot = title.parentNode;
      spot.dataset.tip = title.textContent;
      title.remove();
      return spot;
    });
    svg.addEventListener("pointermove", (event) => {
      let best = null, least = 42;
      for (const spot of spots) {
        const box = spot.getBoundingClientRect();
        if (!box.width && !box.height && spot.closest(".off")) continue;
        const bar = svg.classList.contains("bars");
        const dx = bar ? 0 : event.clientX - (box.left + box.width / 2);
        const far = Math.hypot(dx, event.clientY - (box.top + box.height / 2));
        if (far < least) [best, least] = [spot, far];
      }
      if (best) show(best.dataset.tip, event.clientX, event.clientY); else hide();
    });
    svg.addEventListener("pointerleave", hide);
  }
  for (const button of document.querySelectorAll(".matrix [data-toggle]")) {
    button.addEventListener("click", () => {
      const system = button.dataset.toggle, off = button.getAttribute("aria-pressed") === "true";
      for (const same of document.querySelectorAll(`.matrix [data-toggle="${system}"]`)) same.setAttribute("aria-pressed", String(!off));
      for (const part of document.querySelectorAll(`.matrix [data-system="${system}"]`)) part.classList.toggle("off", off);
    });
  }
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details:not([open])")) { fold.open = true; opened.push(fold); }
  });
  addEventListener("afterprint", () => { for (const fold of opened.splice(0)) fold.open = false; });
})();
