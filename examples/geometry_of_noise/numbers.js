// What each figure shows, as pure functions of its state (its controls and its probe): the numbers beside the drawing,
// and the arrays that are drawn. Run in the page, and by the tests without one.
"use strict";

var Numbers = (data) => {
  const { FiniteData, norm } = Geometry;
  const cache = new Map();

  /** The last few values of an expensive function, by name and arguments. */
  function remember(name, args, compute) {
    const key = name + JSON.stringify(args);
    if (!cache.has(key)) {
      if (cache.size > 60) cache.delete(cache.keys().next().value);
      cache.set(key, compute());
    }
    return cache.get(key);
  }
  const oracle = (points, prior, dimension) =>
    remember("oracle", [points, prior, dimension], () => new FiniteData({ points, prior: data.priors[prior], dimension }));
  const add = (...vectors) => vectors[0].map((_, j) => vectors.reduce((sum, one) => sum + one[j], 0));
  const spread = (low, high, count) => Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));

  // 1. A static field that generates.

  const PARTICLES = 48, STEPS = 120, STOPPED = 0.02;

  function starts(kind) {
    const points = data.points.five, next = Geometry.normals(7);
    return Array.from({ length: PARTICLES }, (_, i) => {
      const angle = (2 * Math.PI * (i + 0.5)) / PARTICLES;
      if (kind === "ring") return [2 * Math.cos(angle), 2 * Math.sin(angle)];
      const noise = [next(), next()];
      return kind === "noise" ? noise : points[i % points.length].map((x, j) => 0.5 * x + 0.5 * noise[j]);
    });
  }

  /** Positions and speeds of all particles after 0 ... k steps; computed as far as they are asked for. */
  function paths({ target, start, step_size, momentum }, k) {
    const run = remember("paths", [target, start, step_size, momentum], () => {
      const positions = starts(start);
      return { positions: [positions], speeds: [], last: positions };
    });
    const field = oracle(data.points.five, "flow_coarse");
    while (run.speeds.length <= k) {
      const now = run.positions.at(-1);
      const moved = now.map((x, i) => Geometry.descend(field, x, run.last[i], target, step_size, momentum));
      run.last = now;
      run.positions.push(moved.map((one) => one.x));
      run.speeds.push(momentum === 0 ? moved.map((one) => one.speed) : now.map((x) => norm(field.at(x).blind(target))));
    }
    return run;
  }

  function flow(state) {
    const run = paths(state, state.step), now = run.positions[state.step], speeds = run.speeds[state.step];
    const field = oracle(data.points.five, "flow_coarse").at(state.probe).blind(state.target);
    const nearest = now.map((x) => Math.min(...data.points.five.map((p) => Math.hypot(x[0] - p[0], x[1] - p[1]))));
    const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;
    return {
      field_x: field[0],
      field_y: field[1],
      field: norm(field),
      mean_field: mean(speeds),
      stopped: speeds.filter((speed) => speed < STOPPED).length,
      distance: mean(nearest),
    };
  }

  /** |f| and f on a square grid of the plane. */
  function plane(target, count, reach) {
    return remember("plane", [target, count, reach], () => {
      const at = spread(-reach, reach, count), field = oracle(data.points.five, "flow_coarse");
      return at.map((y) => at.map((x) => field.at([x, y]).blind(target)));
    });
  }

  // 2. The posterior of the level at a probe. Beyond the plane of the data the state has one number that matters, its distance.

  function lifted({ probe, dimension, off_plane }, points, prior) {
    const u = dimension > 2 ? [...probe, off_plane] : probe;
    return { u, oracle: oracle(points.map((p) => (dimension > 2 ? [...p, 0] : p)), prior, dimension) };
  }

  function posterior(state) {
    const { u, oracle: one } = lifted(state, data.points.five, state.path), at = one.at(u), { mean, std } = at.level();
    const { path, prior } = one, likelihoods = prior.t.map((t) => one.told(u, t).logLikelihood);
    const squared = norm(one.told(u, mean).denoised) ** 2, b = path.sigma(mean);
    const information = (path.alphaDot(mean) ** 2 * squared + 2 * state.dimension * path.sigmaDot(mean) ** 2) / b ** 2;
    return {
      t_hat: mean,
      t_std: std,
      t_law: 1 / Math.sqrt(information),
      t_likely: prior.t[likelihoods.indexOf(Math.max(...likelihoods))],
      energy: at.energy,
    };
  }

  /** p(t|u) at given levels. */
  function posteriorCurve(state, levels) {
    const { u, oracle: one } = lifted(state, data.points.five, state.path);
    return one.logPosteriorDensity(u, levels).map(Math.exp);
  }

  // 3. The level that a radius tells. 4. The same in three dimensions.

  function radius({ dimension, data_dimension, level_1, level_2, marker }) {
    const n = dimension - data_dimension, overlap = Geometry.overlap(level_1, level_2, n);
    return {
      overlap,
      error: overlap / 2,
      std_1: Geometry.radiusStd(level_1, n),
      std_2: Geometry.radiusStd(level_2, n),
      second: Geometry.secondLevel(marker, level_1, level_2, n),
    };
  }

  function clouds({ dimension, level_1, level_2, count }) {
    return remember("clouds", [dimension, level_1, level_2, count], () =>
      [level_1, level_2].map((level, i) =>
        Geometry.shell(count, level, dimension, 20 + i).map((point) => {
          const second = Geometry.secondLevel(norm(point) / Math.sqrt(3), level_1, level_2, dimension);
          return { point, mistaken: second > 0.5 !== (i === 1) };
        }),
      ),
    );
  }

  function shells(state) {
    const { dimension, level_1, level_2, count } = state, drawn = clouds(state);
    return {
      radius_1: level_1 * Math.sqrt(3),
      radius_2: level_2 * Math.sqrt(3),
      thickness_1: Math.sqrt(3) * Geometry.radiusStd(level_1, dimension),
      thickness_2: Math.sqrt(3) * Geometry.radiusStd(level_2, dimension),
      error: Geometry.overlap(level_1, level_2, dimension) / 2,
      mistaken: drawn.flat().filter((one) => one.mistaken).length / (2 * count),
    };
  }

  // 5. Energy, gradient, preconditioned gradient, field.

  function heights(target, u) {
    const at = oracle(data.points.three, "flow_coarse").at(u), parts = at.decomposition(target);
    return {
      energy: at.energy,
      gradient: norm(at.gradient),
      mean_scale: parts.meanScale,
      natural: norm(parts.natural),
      rest: norm(add(parts.transport, parts.drift)),
      field: norm(at.blind(target)),
    };
  }

  const surface = ({ target, probe }) => heights(target, probe);

  function sheet(target, count, reach) {
    return remember("sheet", [target, count, reach], () => {
      const at = spread(-reach, reach, count);
      return at.map((y) => at.map((x) => heights(target, [x, y])));
    });
  }

  // 6. One dimension.

  const dataOnLine = ({ middle }) => [[-1], [middle], [1]];

  function onLine(state, x) {
    const { target, prior } = state, at = oracle(dataOnLine(state), prior).at([x]), parts = at.decomposition(target);
    return {
      energy: at.energy,
      gradient: Math.abs(at.gradient[0]),
      mean_scale: parts.meanScale,
      natural: parts.natural[0],
      rest: parts.transport[0] + parts.drift[0],
      field: at.blind(target)[0],
    };
  }

  /** The same all along a stretch of the line, as [[x], [values at x]]. */
  function along({ target, prior, middle }, low, high, count) {
    return remember("along", [target, prior, middle, low, high, count], () => {
      const at = spread(low, high, count);
      return [at, at.map((x) => onLine({ target, prior, middle }, x))];
    });
  }

  /** Zeros of f, and whether descent comes to rest there (f rises through 0). */
  function zeros(state) {
    return remember("zeros", [state.target, state.prior, state.middle], () => {
      const field = (x) => oracle(dataOnLine(state), state.prior).at([x]).blind(state.target)[0];
      const at = spread(-1.6003, 1.6011, 641), values = at.map(field), found = [];
      for (let i = 1; i < at.length; i++)
        if (values[i - 1] * values[i] < 0)
          found.push({ x: Geometry.root(field, at[i - 1], at[i]), rest: values[i] > values[i - 1] });
      return found;
    });
  }

  function line(state) {
    const { x } = state, distance = Math.min(...dataOnLine(state).map(([p]) => Math.abs(x - p)));
    const here = onLine(state, x);
    return { ...here, distance, well: distance * here.gradient, at_datum: onLine(state, state.middle).field };
  }

  // 7. The three terms of the field.

  function terms(state) {
    const { u, oracle: one } = lifted({ ...state, off_plane: state.level * Math.sqrt(state.dimension - 2) }, data.points.three, state.prior);
    const at = one.at(u, state.sharpness), { natural, transport, drift } = at.decomposition(state.target);
    const field = at.blind(state.target), sum = add(natural, transport, drift);
    return {
      vectors: { natural, transport, drift, field },
      natural: norm(natural),
      transport: norm(transport),
      drift: norm(drift),
      field: norm(field),
      share: norm(transport) / norm(field),
      t_std: at.level().std,
      residual: norm(sum.map((x, j) => x - field[j])),
    };
  }

  // 8. Gain, error and their product as the noise goes.

  const RACERS = ["eps", "x_0", "velocity", "v", "score"], DRAWS = 4, OFF_SHELL = 0.1;
  const NOISES = spread(Math.log(0.8), Math.log(0.003), 26).map(Math.exp);

  /** Four data on the unit sphere of D dimensions. */
  function sphere(dimension) {
    return remember("sphere", [dimension], () => {
      const next = Geometry.normals(11);
      return Array.from({ length: 4 }, () => {
        const point = Array.from({ length: dimension }, next), length = norm(point);
        return point.map((x) => x / length);
      });
    });
  }

  /** States at noise b: draws of p(u|t) around each datum, or one state at a fixed distance from the first datum. */
  function racing({ path, dimension, placement }, b) {
    const points = sphere(dimension), next = Geometry.normals(3), t = Geometry.paths[path].level(b), a = Geometry.paths[path].alpha(t);
    if (placement === "fixed") return { t, states: [points[0].map((x, j) => x + (j === 0 ? OFF_SHELL : 0))] };
    return { t, states: Array.from({ length: DRAWS }, (_, m) => points[m % 4].map((x) => a * x + b * next())) };
  }

  function raceAt(state, b) {
    return remember("race", [state.path, state.dimension, state.placement, b], () => {
      const { t, states } = racing(state, b), points = sphere(state.dimension), a = Geometry.paths[state.path].alpha(t), one = oracle(points, state.path, state.dimension);
      const result = Object.fromEntries(RACERS.map((target) => [target, { gain: 0, error: 0, product: 0 }]));
      let jensen = 0;
      states.forEach((u, m) => {
        const at = one.at(u), r = norm(u.map((x, j) => x - a * points[m % 4][j]));
        jensen += (r * at.mean(one.b.map((x) => 1 / x))) / Math.sqrt(state.dimension) / states.length;
        for (const target of RACERS) {
          const found = Geometry.driftError(one, at, t, target);
          for (const name of ["gain", "error", "product"]) result[target][name] += found[name] / states.length;
        }
      });
      return { t, jensen, targets: result };
    });
  }

  /** One of the figure's curves is a target on a path: the path of the control, or each paper's own. */
  function racers(state) {
    if (state.comparison === "papers")
      return [{ name: "eps", target: "eps", path: "vp" }, { name: "velocity", target: "velocity", path: "flow" }];
    return ["eps", "x_0", "velocity", "v"].filter((name) => state[name]).map((name) => ({ name, target: name, path: state.path }));
  }

  function race(state) {
    const result = { jensen: raceAt(state, state.b).jensen, floor: Geometry.kappa(state.dimension) / Math.sqrt(state.dimension) };
    for (const { name, target, path } of racers(state)) {
      const at = (b) => raceAt({ ...state, path }, b).targets[target], here = at(state.b), step = 1.05;
      result[`${name}_gain`] = here.gain;
      result[`${name}_error`] = here.error;
      result[`${name}_product`] = here.product;
      // rounding has no slope
      result[`${name}_slope`] = here.error < 1e-8 ? undefined : Math.log(at(state.b * step).product / at(state.b / step).product) / (2 * Math.log(step));
    }
    return result;
  }

  return {
    STEPS, PARTICLES, NOISES, spread, starts, paths, flow, plane, posterior, posteriorCurve, radius, clouds, shells, surface,
    heights, sheet, line, along, zeros, terms, sphere, racing, racers, raceAt, race,
  };
};
