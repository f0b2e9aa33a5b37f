// Images that are dropped onto the page or pasted into it.
import { $ } from "./dom.js";

/** @param {{files: Function, url: Function}} take */
export function wireDrop(take) {
  let depth = 0;
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].some((type) => type === "Files" || type === "text/uri-list");
  const show = (on) => { $("drop").hidden = !on; };
  document.addEventListener("dragenter", (event) => { if (carries(event)) { depth += 1; show(true); } });
  document.addEventListener("dragleave", (event) => { if (carries(event)) { depth -= 1; show(depth > 0); } });
  document.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    const files = [...event.dataTransfer.files];
    const url = event.dataTransfer.getData("text/uri-list").split("\n").find((line) => /^https?:/.test(line));
    if (files.length) take.files(files);
    else if (url) take.url(url.trim());
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (files.length) { event.preventDefault(); take.files(files); }
  });
}
