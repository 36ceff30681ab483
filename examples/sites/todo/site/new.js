const form = document.querySelector("form");

form.onsubmit = (event) => {
  event.preventDefault();
  const text = form.text.value.trim();
  if (!text) return;
  const todos = JSON.parse(localStorage.todos ?? "[]");
  localStorage.todos = JSON.stringify([...todos, { text, done: false }]);
  location = "./";
};
