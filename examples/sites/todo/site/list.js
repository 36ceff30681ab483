// The list is kept in localStorage, as [{text: "buy milk", done: false}, ...].
const todos = JSON.parse(localStorage.todos ?? "[]");
const list = document.getElementById("todos");

function save() {
  localStorage.todos = JSON.stringify(todos);
  show();
}

function show() {
  list.replaceChildren(...todos.map(row));
  if (!todos.length) list.textContent = "Nothing to do";
}

function row(todo) {
  const item = document.createElement("li");
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.ariaLabel = `Mark ${todo.text} as done`;
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

show();
