// The same kernel in JavaScript, over JSON lines on stdin and stdout: y = x / sqrt(mean(x^2) + eps) * weight.
//
// walsh conformance --backend "cmd:node examples/javascript_backend/backend.mjs" --op rms_norm

import { createInterface } from "node:readline";

const ARRAYS = { float32: Float32Array, float64: Float64Array };

function decode(tensor) {
  const bytes = Uint8Array.from(Buffer.from(tensor.base64, "base64")); // a copy, so that its offset is aligned
  return new ARRAYS[tensor.dtype](bytes.buffer);
}

function rmsNorm(x, weight, eps) {
  const y = new x.constructor(x.length);
  for (let start = 0; start < x.length; start += weight.length) {
    const row = x.subarray(start, start + weight.length);
    const mean = row.reduce((sum, value) => sum + value * value, 0) / weight.length;
    row.forEach((value, i) => { y[start + i] = (value / Math.sqrt(mean + eps)) * weight[i]; });
  }
  return y;
}

function run({ params, inputs }) {
  const { x, weight } = inputs;
  const eps = Number({ nan: NaN, inf: Infinity, "-inf": -Infinity }[params.eps] ?? params.eps ?? 1e-6);
  for (const [name, tensor] of Object.entries(inputs)) {
    if (/int|bool/.test(tensor.dtype)) return { error: { class: "DTypeError", message: `${name} is ${tensor.dtype}` } };
    if (!(tensor.dtype in ARRAYS)) return { skip: { reason: "float32 and float64 only" } };
  }
  if (weight.shape.length !== 1 || x.shape.at(-1) !== weight.shape[0])
    return { error: { class: "ShapeError", message: `x ${x.shape}, weight ${weight.shape}: expected [..., C] and [C]` } };
  if (!(eps >= 0 && eps < Infinity)) return { error: { class: "ParameterError", message: `eps ${eps}: expected at least 0` } };
  const y = rmsNorm(decode(x), decode(weight), eps);
  const base64 = Buffer.from(y.buffer, y.byteOffset, y.byteLength).toString("base64");
  return { outputs: { y: { dtype: x.dtype, shape: x.shape, base64 } } };
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  if (request.message === "close") break;
  const description = { name: "javascript", version: "1.0", calls: ["rms_norm"] };
  const reply = request.message === "describe" ? { description } : { id: request.id, ...run(request) };
  process.stdout.write(JSON.stringify(reply) + "\n");
}
process.exit(0);
