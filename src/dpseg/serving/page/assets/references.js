// The visitor's reference pictures: [{name, picture}], each with a button that removes it ("remove").
const list = element.querySelector("ul");

function show() {
  list.replaceChildren(
    ...(props.value || []).map((one, index) => {
      const item = document.createElement("li");
      const picture = document.createElement("img");
      picture.src = one.picture;
      picture.alt = "";
      const name = document.createElement("span");
      name.textContent = one.name;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "×";
      button.setAttribute("aria-label", `Remove the reference ${index + 1}, ${one.name}`);
      button.addEventListener("click", () => trigger("remove", { index }));
      item.append(picture, name, button);
      return item;
    }),
  );
}

watch("value", show);
show();
