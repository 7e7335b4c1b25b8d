// Live rows, and the comparison's checkboxes. Everything works without this, by loading a page again.
"use strict";
{
  const table = document.getElementById("runs");
  const button = document.getElementById("compare");
  const said = document.getElementById("selected");
  const boxes = table ? [...table.querySelectorAll('input[name="run"]')] : [];
  const hint = said ? said.textContent : "";
  const count = () => {
    const chosen = boxes.filter((box) => box.checked).length;
    button.disabled = chosen < 2;
    said.textContent = chosen ? `${chosen} selected${chosen < 2 ? "; one more" : ""}` : hint;
  };
  if (button) {
    for (const box of boxes) box.addEventListener("change", count);
    count();
  }

  const news = () => {
    const notice = document.getElementById("news");
    const busy = boxes.some((box) => box.checked) || document.querySelector("input:focus, textarea:focus");
    if (!notice || !busy) location.reload();
    else notice.hidden = false;
  };
  if (table && window.EventSource) {
    const elements = [...document.querySelectorAll("[data-running]")];
    const following = elements.length > 0 || (document.querySelector("table.list") && !location.search);
    const query = new URLSearchParams([["newest", table.dataset.newest || ""], ...elements.map((one) => ["run", one.dataset.running])]);
    const root = document.querySelector(".bar .project").getAttribute("href");
    if (following) {
      const source = new EventSource(`${root}events?${query}`);
      source.addEventListener("row", (event) => {
        const { run, lines } = JSON.parse(event.data);
        for (const one of elements) {
          if (one.dataset.running !== run) continue;
          const live = one.querySelector(".live");
          if (live) live.textContent = lines.join("\n");
        }
      });
      source.addEventListener("ended", news);
      source.addEventListener("begun", news);
      window.addEventListener("pagehide", () => source.close());
    }
  }
}
