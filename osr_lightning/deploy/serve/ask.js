
// ---- the server answers

async function load() {
  try {
    return await (await fetch("model")).json();
  } catch (error) {
    throw new Error("The server does not say what it knows: see whether it still runs, then load the page again");
  }
}

async function explain(blob, name) {
  if (model && blob.size > model.limits.body_bytes - 2000) // the form takes some bytes itself
    return { error: `${name} has more than ${number(model.limits.body_bytes / 2 ** 20)} MiB: choose a smaller image` };
  const form = new FormData();
  form.append("image", blob, name);
  try {
    return await (await fetch("explain?map=true", { method: "POST", body: form })).json();
  } catch (error) {
    return { error: "The server does not answer: see whether it still runs, then try again" };
  }
}
