// The mathematics of the page: pure functions in float64, no page, no network.
//
//   u = a(t) x + b(t) eps,  t = 0 data, t = 1 noise;  a network regresses r = c(t) x + d(t) eps
//   f_t(u) = E[r | u, t] when it is told the level,  f(u) = E_{t|u}[f_t(u)] when it is not
//
// On finite data all of this is a double sum, over data and over the levels of a prior. It is the computation of
// nag.theory.FiniteData, and tests/examples/test_geometry_of_noise.py compares the two.
"use strict";

var Geometry = (() => {
  // Paths: a, b, their derivatives, 1 - a without cancellation, and the level at which b has a value.
  const BETA_MIN = 0.1, BETA_MAX = 20;
  const integral = (t) => BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t * t;
  const beta = (t) => BETA_MIN + (BETA_MAX - BETA_MIN) * t;
  const vpAlpha = (t) => Math.exp(-0.5 * integral(t));
  const vpSigma = (t) => Math.sqrt(-Math.expm1(-integral(t)));
  const paths = {
    flow: { alpha: (t) => 1 - t, sigma: (t) => t, alphaDot: () => -1, sigmaDot: () => 1, missing: (t) => t, level: (b) => b },
    plain: { alpha: () => 1, sigma: (t) => t, alphaDot: () => 0, sigmaDot: () => 1, missing: () => 0, level: (b) => b },
    vp: {
      alpha: vpAlpha,
      sigma: vpSigma,
      alphaDot: (t) => -0.5 * beta(t) * vpAlpha(t),
      sigmaDot: (t) => (0.5 * beta(t) * vpAlpha(t) ** 2) / vpSigma(t),
      missing: (t) => -Math.expm1(-0.5 * integral(t)),
      level: (b) => {
        const whole = -Math.log1p(-b * b);
        return (2 * whole) / (BETA_MIN + Math.sqrt(BETA_MIN ** 2 + 2 * (BETA_MAX - BETA_MIN) * whole));
      },
    },
  };

  // Targets: [c, d] of r = c x + d eps at a level. EqM: r = (eps - x) c(gamma), gamma = 1 - t, so f = grad E.
  const TRUNCATION = 0.8;
  const targets = {
    eps: () => [0, 1],
    x_0: () => [1, 0],
    velocity: (path, t) => [path.alphaDot(t), path.sigmaDot(t)],
    v: (path, t) => [-path.sigma(t), path.alpha(t)],
    score: (path, t) => [0, -1 / path.sigma(t)],
    eqm_linear: (path, t) => [-t, t],
    eqm_truncated: (path, t) => {
      const factor = Math.min(1, t / (1 - TRUNCATION));
      return [-factor, factor];
    },
  };

  /** lambda of f_t = (c/a) u + lambda grad E_t. */
  function preconditioner(path, target, t) {
    const [c, d] = targets[target](path, t), a = path.alpha(t), b = path.sigma(t);
    return (b / a) * (d * a - c * b);
  }

  /** nu of du/dt = mu u + nu f_t: how much an error of the network is amplified by the sampler. */
  function gain(path, target, t) {
    const [c, d] = targets[target](path, t), a = path.alpha(t), b = path.sigma(t);
    return (path.sigmaDot(t) * a - path.alphaDot(t) * b) / (a * d - b * c);
  }

  /** g^2/2 of the SDE; equals gain * preconditioner for every target. */
  function halfDiffusion(path, t) {
    const a = path.alpha(t), b = path.sigma(t);
    return (b / a) * (path.sigmaDot(t) * a - path.alphaDot(t) * b);
  }

  const norm = (vector) => Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
  const LOG_2PI = Math.log(2 * Math.PI);

  /**
   * Equally likely points, a path and a prior over levels.
   * points: N vectors of one length; dimension: D of the space they lie in, whose further coordinates are 0 for the data.
   * prior: {path, t, log_probability, log_density}; log_density is that of a prior uniform in t.
   */
  class FiniteData {
    constructor({ points, prior, dimension = points[0].length }) {
      Object.assign(this, { points, prior, dimension, path: paths[prior.path], tables: {} });
      this.exponents = new Float64Array(points.length);
      this.b = Float64Array.from(prior.t).map(this.path.sigma);
      this.missing = Float64Array.from(prior.t).map(this.path.missing); // 1 - a
    }

    /** c, d, lambda and c/a of a target at the levels of the prior. */
    table(target) {
      const { path, prior } = this, columns = () => Float64Array.from(prior.t);
      this.tables[target] ??= {
        c: columns().map((t) => targets[target](path, t)[0]),
        d: columns().map((t) => targets[target](path, t)[1]),
        scale: columns().map((t) => preconditioner(path, target, t)),
        drift: columns().map((t) => targets[target](path, t)[0] / path.alpha(t)),
      };
      return this.tables[target];
    }

    /** At one level: returns log p(u|t) and writes E[x|u,t] and E[eps|u,t] to the arrays, from an index on. */
    toldInto(u, b, missing, denoised, eps, start) {
      const { points, exponents, dimension } = this, count = points.length, size = u.length, factor = -1 / (2 * b * b);
      let top = -Infinity;
      for (let k = 0; k < count; k++) {
        const point = points[k];
        let squared = 0;
        for (let j = 0; j < size; j++) {
          const noise = u[j] - point[j] + missing * point[j];
          squared += noise * noise;
        }
        exponents[k] = factor * squared;
        if (exponents[k] > top) top = exponents[k];
      }
      let total = 0;
      for (let k = 0; k < count; k++) {
        if (exponents[k] < top - 60) continue; // below the last bit of the sum
        const point = points[k], weight = Math.exp(exponents[k] - top);
        total += weight;
        for (let j = 0; j < size; j++) {
          denoised[start + j] += weight * point[j];
          eps[start + j] += weight * (u[j] - point[j] + missing * point[j]);
        }
      }
      for (let j = start; j < start + size; j++) {
        denoised[j] /= total;
        eps[j] /= total * b;
      }
      return top + Math.log(total / count) - dimension * (Math.log(b) + 0.5 * LOG_2PI);
    }

    /** At one level: log p(u|t), E[x|u,t] and E[eps|u,t]. */
    told(u, t) {
      const denoised = u.map(() => 0), eps = u.map(() => 0);
      return { logLikelihood: this.toldInto(u, this.path.sigma(t), this.path.missing(t), denoised, eps, 0), denoised, eps };
    }

    /** f_t(u), the optimum of a network that is told the level. */
    conditional(u, t, target) {
      const { denoised, eps } = this.told(u, t), [c, d] = targets[target](this.path, t);
      return u.map((_, j) => c * denoised[j] + d * eps[j]);
    }

    /** Everything at one state. The posterior p(t|u) is prior times likelihood to the power of sharpness; 1 is the true one. */
    at(u, sharpness = 1) {
      const { t, log_probability } = this.prior, size = u.length;
      const denoised = new Float64Array(t.length * size), eps = new Float64Array(t.length * size);
      const likelihood = new Float64Array(t.length), joint = new Float64Array(t.length);
      for (let i = 0; i < t.length; i++) {
        likelihood[i] = this.toldInto(u, this.b[i], this.missing[i], denoised, eps, i * size);
        joint[i] = likelihood[i] + log_probability[i];
      }
      const logMarginal = logSumExp(joint);
      const probability = joint.map((one) => Math.exp(one - logMarginal));
      if (sharpness !== 1) {
        const tempered = joint.map((_, i) => sharpness * likelihood[i] + log_probability[i]), total = logSumExp(tempered);
        tempered.forEach((one, i) => (probability[i] = Math.exp(one - total)));
      }
      return new State(this, u, denoised, eps, probability, logMarginal);
    }

    /** log p(t|u) as a density in t, for levels between the nodes of the prior. */
    logPosteriorDensity(u, levels, logMarginal = this.at(u).logMarginal) {
      return levels.map((t) => this.told(u, t).logLikelihood - logMarginal + this.prior.log_density);
    }
  }

  function logSumExp(values) {
    let top = -Infinity, sum = 0;
    for (const x of values) if (x > top) top = x;
    for (const x of values) sum += Math.exp(x - top);
    return top + Math.log(sum);
  }

  class State {
    constructor(oracle, u, denoised, eps, probability, logMarginal) {
      Object.assign(this, { oracle, u, denoised, eps, probability, logMarginal, energy: -logMarginal });
    }

    /** E[value_t | u] of one number per level. */
    mean(values) {
      let total = 0;
      for (let i = 0; i < values.length; i++) total += this.probability[i] * values[i];
      return total;
    }

    /** E[x_t E[x|u,t] + y_t E[eps|u,t] | u] of two numbers per level. */
    combination(x, y) {
      const size = this.u.length, total = this.u.map(() => 0);
      for (let i = 0; i < x.length; i++) {
        if (this.probability[i] === 0) continue;
        for (let j = 0; j < size; j++)
          total[j] += this.probability[i] * (x[i] * this.denoised[i * size + j] + y[i] * this.eps[i * size + j]);
      }
      return total;
    }

    /** Mean and standard deviation of t under p(t|u). */
    level() {
      const { t } = this.oracle.prior, mean = this.mean(t);
      return { mean, std: Math.sqrt(this.mean(t.map((one) => (one - mean) ** 2))) };
    }

    /** grad E = E[eps_t / b_t | u], of E = -log p(u). */
    get gradient() {
      return this.combination(this.oracle.b.map(() => 0), this.oracle.b.map((b) => 1 / b));
    }

    /** f(u), the optimum of a network that is not told the level. */
    blind(target) {
      const { c, d } = this.oracle.table(target);
      return this.combination(c, d);
    }

    /** f = natural + transport + drift (Geometry of Noise, eq. 14). */
    decomposition(target) {
      const { scale, drift } = this.oracle.table(target), { gradient } = this, size = this.u.length;
      const meanScale = this.mean(scale), meanDrift = this.mean(drift), transport = this.u.map(() => 0);
      for (let i = 0; i < scale.length; i++)
        for (let j = 0; j < size; j++)
          transport[j] += this.probability[i] * (scale[i] - meanScale) * (this.eps[i * size + j] / this.oracle.b[i] - gradient[j]);
      return {
        meanScale,
        natural: gradient.map((x) => meanScale * x),
        transport,
        drift: this.u.map((x) => meanDrift * x),
      };
    }
  }

  /** Error of the sampler's velocity for want of the level, at a state and the clock's level t: gain * |f - f_t|. */
  function driftError(oracle, state, t, target) {
    const blind = state.blind(target), told = oracle.conditional(state.u, t, target);
    const error = norm(blind.map((x, j) => x - told[j]));
    const factor = Math.abs(gain(oracle.path, target, t));
    return { gain: factor, error, product: factor * error };
  }

  /** Descent x <- x - step f(x + momentum (x - last)): Equilibrium Matching's update, plain for momentum 0. */
  function descend(oracle, x, last, target, step, momentum = 0) {
    const field = oracle.at(x.map((value, j) => value + momentum * (value - last[j]))).blind(target);
    return { x: x.map((value, j) => value - step * field[j]), speed: norm(field) };
  }

  // Radii of noise. r = |u - x| of noise of standard deviation s in n dimensions, as the estimate r / sqrt(n) of s.

  function logGamma(x) {
    const lanczos = [
      676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905,
      -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
    ];
    const y = x - 1, base = y + 7.5;
    const sum = lanczos.reduce((total, k, i) => total + k / (y + i + 1), 0.99999999999980993);
    return 0.5 * LOG_2PI + (y + 0.5) * Math.log(base) - base + Math.log(sum);
  }

  /** Regularised lower incomplete gamma function P(shape, x): a series below shape + 1, a continued fraction above. */
  function lowerGamma(shape, x) {
    if (x <= 0) return 0;
    const front = Math.exp(shape * Math.log(x) - x - logGamma(shape));
    if (x < shape + 1) {
      let term = 1 / shape, sum = term;
      for (let n = 1; n < 1000 && term > 1e-17 * sum; n++) sum += term *= x / (shape + n);
      return front * sum;
    }
    let b = x + 1 - shape, c = 1e300, d = 1 / b, fraction = d;
    for (let n = 1; n < 1000; n++) {
      const k = -n * (n - shape);
      b += 2;
      d = 1 / (k * d + b);
      c = b + k / c;
      fraction *= c * d;
      if (Math.abs(c * d - 1) < 1e-16) break;
    }
    return 1 - front * fraction;
  }

  /** Density of s_hat = r / sqrt(n) for noise of level s. */
  function radiusDensity(sHat, s, n) {
    if (sHat <= 0) return n === 1 && sHat === 0 ? Math.sqrt(2 / Math.PI) / s : 0;
    const z = (Math.sqrt(n) * sHat) / s;
    return Math.exp((1 - n / 2) * Math.LN2 - logGamma(n / 2) + (n - 1) * Math.log(z) - (z * z) / 2) * (Math.sqrt(n) / s);
  }

  /** Where the densities of two levels are equal; the same in every dimension. */
  function crossing(low, high) {
    return Math.sqrt((2 * Math.log(high / low)) / (1 / low ** 2 - 1 / high ** 2));
  }

  /** Shared area of the two densities: twice the error of the best guess between two equally likely levels. */
  function overlap(low, high, n) {
    if (low === high) return 1;
    const s = crossing(Math.min(low, high), Math.max(low, high));
    const below = (level) => lowerGamma(n / 2, (n * s * s) / (2 * level * level));
    return 1 - below(Math.min(low, high)) + below(Math.max(low, high));
  }

  /** Standard deviation of s_hat = r / sqrt(n). */
  function radiusStd(s, n) {
    const mean = Math.exp(0.5 * Math.LN2 + logGamma((n + 1) / 2) - logGamma(n / 2)) / Math.sqrt(n);
    return s * Math.sqrt(Math.max(0, 1 - mean * mean));
  }

  /** Probability of the second of two equally likely levels at r / sqrt(n) = sHat. */
  function secondLevel(sHat, first, second, n) {
    const score = (level) => -n * Math.log(level) - (n * sHat * sHat) / (2 * level * level);
    return 1 / (1 + Math.exp(score(first) - score(second)));
  }

  /** kappa_D = sqrt(2) Gamma(D/2) / Gamma((D-1)/2): r E[1/b | u] next to one datum, for b = t and p(t) uniform. */
  const kappa = (dimension) => Math.SQRT2 * Math.exp(logGamma(dimension / 2) - logGamma((dimension - 1) / 2));

  /** Standard normal numbers from a seed (mulberry32 and Box-Muller): the same on every machine. */
  function normals(seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let z = Math.imul(state ^ (state >>> 15), state | 1);
      z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
      return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 4294967296;
    };
    return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  /** Noise of the level in n dimensions, drawn in three: a uniform direction, and the radius of n dimensions, scaled by sqrt(3/n). */
  function shell(count, level, n, seed) {
    const next = normals(seed);
    return Array.from({ length: count }, () => {
      const noise = Array.from({ length: n }, next), extra = n === 3 ? noise : [next(), next(), next()];
      const radius = Math.sqrt(3 / n) * norm(noise), length = norm(extra);
      return extra.map((x) => (level * radius * x) / length);
    });
  }

  /** Where f changes its sign between low and high, by bisection; null if it does not. */
  function root(f, low, high) {
    let left = f(low);
    if (left * f(high) > 0) return null;
    while (high - low > 1e-14) {
      const middle = (low + high) / 2, value = f(middle);
      if (middle === low || middle === high || value === 0) return middle;
      if (left * value > 0) {
        low = middle;
        left = value;
      } else high = middle;
    }
    return (low + high) / 2;
  }

  return {
    FiniteData, paths, targets, preconditioner, gain, halfDiffusion, driftError, descend, norm,
    logGamma, lowerGamma, radiusDensity, crossing, overlap, radiusStd, secondLevel, kappa, normals, shell, root,
  };
})();
