// Runs before the first paint: the theme is the visitor's choice, or else the system's.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let choice = "auto";
    try {
      choice = JSON.parse(localStorage.getItem("radixlm.settings"))?.theme ?? "auto";
    } catch {
      /* no storage: auto */
    }
    document.documentElement.dataset.theme = choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
  };
  dark.addEventListener("change", apply);
  addEventListener("themechange", apply);
  apply();
})();
