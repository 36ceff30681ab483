// The list is kept in localStorage, as [{text: "Buy milk", done: false}, ...].
const todos = JSON.parse(localStorage.todos ?? "[]");

function save() {
  localStorage.todos = JSON.stringify(todos);
  show();
}

function show() {
  document.getElementById("todos").replaceChildren(...todos.map(row));
  const open = todos.filter((todo) => !todo.done).length;
  document.getElementById("count").textContent = todos.length
    ? `${open} of ${todos.length} open`
    : "Nothing to do";
}

function row(todo) {
  const item = document.createElement("li");
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = todo.done;
  box.onchange = () => {
    todo.done = box.checked;
    save();
  };
  label.append(box, todo.text);
  const button = document.createElement("button");
  button.textContent = "Delete";
  button.ariaLabel = `Delete ${todo.text}`;
  button.onclick = () => {
    todos.splice(todos.indexOf(todo), 1);
    save();
  };
  item.append(label, button);
  return item;
}

document.getElementById("add").onsubmit = (event) => {
  event.preventDefault();
  const input = document.getElementById("text");
  const text = input.value.trim();
  if (!text) return;
  todos.push({ text, done: false });
  input.value = "";
  save();
};

show();
