let kept = "";
onconnect = ({ ports: [port] }) => {
  port.onmessage = ({ data }) => {
    kept ||= data;
    port.postMessage(kept);
  };
};
