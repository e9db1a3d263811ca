// 4. Noise of two levels around one datum, in three dimensions.
"use strict";

new Figure("shells", (figure) => {
  const plot = figure.plots.space, turn = (name, by) => figure.slide(name, figure.state[name] + by);
  const yaw = (by) => figure.slide("yaw", ((figure.state.yaw + by + 540) % 360) - 180);
  figure.hands(plot, {
    turn: (dx, dy) => (yaw(-0.5 * dx), turn("pitch", 0.5 * dy)),
    nudge: (dx, dy) => (yaw(-3 * dx), turn("pitch", 3 * dy)),
  });
  figure.player("spin", () => (yaw(1), true), ["Spin", "Stop"]);

  function draw(state, numbers) {
    plot.begin();
    const levels = [state.level_1, state.level_2], colours = [css("--r0"), css("--r1")];
    const scale = (0.5 * Math.min(plot.width, plot.height)) / 2.9;
    const view = camera([plot.width / 2, plot.height / 2], scale, state.yaw, state.pitch);
    if (state.spheres)
      levels.forEach((level, i) => {
        const radius = level * Math.sqrt(3), turns = NUMBERS.spread(0, 2 * Math.PI, 73);
        const rings = [-60, -30, 0, 30, 60].map((angle) => {
          const z = Math.sin((angle * Math.PI) / 180), r = Math.cos((angle * Math.PI) / 180);
          return turns.map((a) => [radius * r * Math.cos(a), radius * r * Math.sin(a), radius * z]);
        });
        for (const angle of [0, 45, 90, 135]) {
          const c = Math.cos((angle * Math.PI) / 180), s = Math.sin((angle * Math.PI) / 180);
          rings.push(turns.map((a) => [radius * c * Math.cos(a), radius * s * Math.cos(a), radius * Math.sin(a)]));
        }
        for (const ring of rings) plot.path(ring.map((x) => view(x).slice(0, 2)), colours[i], { width: 1, opacity: 0.35 });
      });
    const drawn = NUMBERS.clouds(state).flatMap((cloud, i) => cloud.map((one) => ({ ...one, i, place: view(one.point) })));
    drawn.push({ datum: true, place: view([0, 0, 0]) });
    drawn.sort((p, q) => p.place[2] - q.place[2]);
    for (const one of drawn) {
      const [x, y, depth] = one.place, near = Math.max(0.35, Math.min(1, 0.7 + 0.2 * depth));
      if (one.datum) plot.datum([x, y], 5);
      else if (one.mistaken) plot.dot([x, y], 2.6 + near, fade(css("--card"), 0.5), { ring: fade(colours[one.i], near), width: 1.5, square: one.i === 1 });
      else plot.dot([x, y], 1.4 + near, fade(colours[one.i], near), { square: one.i === 1 });
    }
    figure.write(numbers);
    const thick = numbers.thickness_2 / numbers.radius_2;
    figure.say(
      `${state.dimension === 3 ? "In three dimensions" : `With the radii of ${state.dimension} dimensions`} a shell's thickness is ${readable(100 * thick, 2)} % of its radius. Guessing the level of a point by its radius fails for ${readable(100 * numbers.mistaken, 2)} % of these points; exactly, ${readable(100 * numbers.error, 3)} %.`,
    );
  }
  const degrees = (x) => `${readable(x, 3)}°`;
  const two = (x) => x.toFixed(2);
  return { numbers: NUMBERS.shells, draw, shown: { yaw: degrees, pitch: degrees, level_1: two, level_2: two } };
});
