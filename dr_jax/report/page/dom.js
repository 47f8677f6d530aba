/* Elements, numbers and bytes. Data come into the page as text nodes and attributes only. */

function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, '');
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/* A number as short as it can be told: 0.432, 1,357, 8.6e-6. */
function number(value, digits = 3) {
  if (value == null || !Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e7)) return value.toExponential(1);
  if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString('en');
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? Math.min(2, digits) : digits);
}

/* A number of a column whose decimals stand below each other. */
function fixed(value, digits) {
  return value == null ? '–' : value.toFixed(digits);
}

function signed(value, digits = 2) {
  return value == null ? '–' : (value < 0 ? '−' : '+') + Math.abs(value).toFixed(digits);
}

function formatted(value, form) {
  return form === 'share' && value != null ? `${(100 * value).toFixed(1)} %` : number(value);
}

function duration(seconds) {
  if (seconds == null) return '–';
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

function words(name) {
  return name.replaceAll('_', ' ');
}

/* Text out of base64 of gzip. */
async function unpacked(base64) {
  const binary = atob(base64.trim());
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).text();
}
