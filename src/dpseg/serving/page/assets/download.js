// Saves what the server sent: {name, media, content in base64}.
watch("value", async () => {
  if (!props.value) return;
  const { name, media, content } = props.value;
  const file = await (await fetch(`data:${media};base64,${content}`)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
