// 7. The field of a network without a clock, head to tail from its three terms.
"use strict";

new Figure("terms", (figure) => {
  const plot = figure.plots.plane, REACH = 1.3, GRID = 6, NAMES = ["natural", "transport", "drift"];
  figure.extra.probe = [0.8, 0.55];
  let frame = null;
  figure.planeProbe(plot, () => frame, REACH, 0.02);

  function draw(state, numbers) {
    plot.begin();
    frame = plot.frame(plot.square(4), { low: -REACH, high: REACH, quiet: true }, { low: -REACH, high: REACH, quiet: true });
    const colours = { natural: css("--r2"), transport: css("--r1"), drift: css("--r3") };
    const at = NUMBERS.spread(-1, 1, GRID).flatMap((y) => NUMBERS.spread(-1, 1, GRID).map((x) => [x, y]));
    const all = [...at, state.probe].map((probe) => ({ probe, ...NUMBERS.terms({ ...state, probe }).vectors }));
    const lengths = all.flatMap((one) => NAMES.map((name) => Math.hypot(one[name][0], one[name][1]))).sort((x, y) => x - y);
    const unit = (0.9 * frame.width) / (GRID * Math.max(1e-9, lengths[Math.floor(0.8 * lengths.length)]));
    frame.clip(() => {
      all.forEach((one, k) => {
        const chosen = k === all.length - 1, size = chosen ? 1.9 : 1, options = { width: 1.6 * size, head: 6 * size, opacity: chosen ? 1 : 0.8 };
        const begin = frame.at(one.probe), pixels = (vector) => [-unit * vector[0], unit * vector[1]];
        let place = begin;
        for (const name of NAMES.filter((name) => state[name])) {
          const step = pixels(one[name]);
          plot.arrow(place, step, colours[name], options);
          place = [place[0] + step[0], place[1] + step[1]];
        }
        plot.arrow(begin, [place[0] - begin[0], place[1] - begin[1]], css("--ink"), { ...options, dash: [4, 3] });
        if (!chosen) plot.dot(begin, 1.8, css("--soft"));
      });
    });
    DATA.points.three.forEach((x) => plot.datum(frame.at(x)));
    plot.probe(frame.at(state.probe));
    figure.control("level").disabled = state.dimension === 2;
    figure.write(numbers, { residual: 2 });
    figure.say(
      `At the probe t is known to ± ${readable(numbers.t_std, 2)}; the transport term is ${readable(numbers.share, 2)} times as long as the whole field, the natural one ${readable(numbers.natural / numbers.field, 2)} times.${state.sharpness !== 1 ? " The posterior is sharpened: this is no longer what a network learns." : ""}`,
    );
  }
  return { numbers: NUMBERS.terms, draw, shown: { level: (x) => x.toFixed(2), sharpness: (x) => x.toFixed(1) } };
});
