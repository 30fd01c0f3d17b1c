() => {
  // Every text that is seen with less than 4.5 to 1 between it and its ground (WCAG AA).
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const linear = (value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const seen = (node) =>
    node.offsetParent && [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  const ratio = (node) => {
    const [more, less] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    return (more + 0.05) / (less + 0.05);
  };
  const all = [...document.querySelectorAll("body *")]
    .filter(seen)
    .map((node) => [`${node.className} ${node.textContent.slice(0, 30)}`, ratio(node)]);
  return all.filter(([, value]) => value < 4.5);
};
