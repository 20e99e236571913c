// Renders what pymdownx.arithmatex (generic mode) marked as mathematics, with the local KaTeX.
// document$ is Material's: it emits the first page and, with instant navigation, every later one.
document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex:not([data-rendered])")) {
    const source = element.textContent.trim();
    const display = source.startsWith("\\[");
    // Strip the delimiters \( … \) or \[ … \].
    katex.render(source.slice(2, -2), element, { displayMode: display, throwOnError: false });
    element.dataset.rendered = "";
  }
});
