export const render = (root) => {
  root.innerHTML = "<button>Count 0</button>";
  let count = 0;
  root.firstChild.onclick = () => (root.firstChild.textContent = `Count ${++count}`);
};
