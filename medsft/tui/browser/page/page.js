// Tells textual.js where its websocket is, and gives the keys to the terminal without a click.
"use strict";

addEventListener("DOMContentLoaded", () => {
  // Beside this page, under whatever address the browser came by: a tunnel may have another port.
  const socket = new URL("ws", location.origin + location.pathname);
  socket.protocol = "ws:";
  document.getElementById("terminal").dataset.sessionWebsocketUrl = socket.href;

  const again = document.getElementById("again");
  again.addEventListener("click", () => location.reload());

  // textual.js marks the body: the first bytes have come, the socket has closed. An earlier focus would not be told to the app.
  const focus = () => {
    const closed = document.body.classList.contains("-closed");
    const target = closed ? again : document.querySelector(".xterm-helper-textarea");
    if (target && document.activeElement !== target) target.focus();
  };
  new MutationObserver(focus).observe(document.body, { attributeFilter: ["class"] });
  addEventListener("focus", focus);
});
