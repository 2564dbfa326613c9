// SPDX-License-Identifier: BSD-3-Clause
// What packing.py packed: a header of JSON, then columns of varints, deflated, in base64.

async function unpack(text) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser is too old to unpack the events (it has no DecompressionStream)");
  }
  const packed = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let at = 4 + length;
  const column = (Kind) => {
    const values = new Kind(header.events);
    for (let i = 0; i < values.length; i++) {
      let value = 0, scale = 1, byte;
      do { // numbers, not bits: nanoseconds need more than 32 of them
        byte = bytes[at++];
        value += (byte & 127) * scale;
        scale *= 128;
      } while (byte > 127);
      values[i] = value;
    }
    return values;
  };
  const data = { ...header, type: column(Uint32Array), start: column(Float64Array), seconds: column(Float64Array),
    fact: column(Uint32Array), flow: column(Uint32Array), track: new Uint32Array(header.events) };
  let i = 0;
  data.tracks.forEach((track, number) => {
    track.first = i;
    let now = 0; // starts are differences within a track
    for (const last = i + track.count; i < last; i++) {
      now += data.start[i];
      data.start[i] = now * 1e-9;
      data.seconds[i] *= 1e-9;
      data.track[i] = number;
    }
  });
  data.end = data.start.map((start, k) => start + data.seconds[k]);
  return data;
}
