// SPDX-License-Identifier: BSD-3-Clause
// What a plain compiled program needs: the serial solve, and MGRIT written as loops over single points.
//
//   yardstick serial STEPS POINTS END REPEATS                          u_t = u_xx, backward Euler
//   yardstick mgrit  STEPS POINTS END M LEVELS CYCLES THREADS REPEATS  the same, FCF-relaxation, V-cycles
//   yardstick rk4    lorenz|brusselator STEPS END REPEATS
//
// STEPS is a multiple of M^(LEVELS - 1). POINTS, at least 3, are the inner points of (0, 1); u = 0 at both ends and
// u(0, x) = 1 left of the middle, 0 right of it. Prints one JSON object. Every repetition starts anew; a time is
// seconds of one repetition, or of one cycle of it.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Vector = std::vector<double>;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// (I - h A) x = b for the second difference A, by elimination from the left and substitution back: two chains of
// `points` dependent multiply-adds.
class Thomas {
 public:
  Thomas(int points, double h) : n_(points), ratio_(points), inverse_(points) {
    const double dx = 1.0 / (points + 1), off = -h / (dx * dx), diagonal = 1 - 2 * off;
    inverse_[0] = 1 / diagonal;
    for (int i = 1; i < n_; ++i) {
      ratio_[i] = off * inverse_[i - 1];
      inverse_[i] = 1 / (diagonal - ratio_[i] * off);
    }
  }

  void step(const double* b, double* x) const {
    double z = b[0];
    x[0] = z * inverse_[0];
    for (int i = 1; i < n_; ++i) {
      z = b[i] - ratio_[i] * z;
      x[i] = z * inverse_[i];  // here, where nothing waits for it: on the way back it would lengthen the chain
    }
    z = x[n_ - 1];
    for (int i = n_ - 2; i >= 0; --i) x[i] = z = x[i] - ratio_[i + 1] * z;
  }

 private:
  int n_;
  Vector ratio_, inverse_;
};

// The same from both ends to the middle and back: the two halves do not wait for each other, so the processor works on
// two chains of half the length at a time.
class BothEnds {
 public:
  BothEnds(int points, double h) : n_(points), half_(points / 2), ratio_(half_ + 1), inverse_(half_ + 1) {
    const double dx = 1.0 / (points + 1), off = -h / (dx * dx), diagonal = 1 - 2 * off;
    inverse_[0] = 1 / diagonal;
    for (int i = 1; i <= half_; ++i) {
      ratio_[i] = off * inverse_[i - 1];
      inverse_[i] = 1 / (diagonal - ratio_[i] * off);
    }
    right_ = n_ - 1 - half_;  // rows right of the middle row: as many as left of it, or one less
    middle_ = 1 / (diagonal - ratio_[half_] * off - ratio_[right_] * off);
  }

  void step(const double* b, double* x) const {
    const int end = n_ - 1;
    double left = b[0], right = b[end];
    x[0] = left * inverse_[0];
    x[end] = right * inverse_[0];
    for (int i = 1; i < right_; ++i) {
      left = b[i] - ratio_[i] * left;
      right = b[end - i] - ratio_[i] * right;
      x[i] = left * inverse_[i];
      x[end - i] = right * inverse_[i];
    }
    if (right_ < half_) {
      left = b[half_ - 1] - ratio_[half_ - 1] * left;
      x[half_ - 1] = left * inverse_[half_ - 1];
    }
    left = right = x[half_] = (b[half_] - ratio_[half_] * left - ratio_[right_] * right) * middle_;
    if (right_ < half_) x[half_ - 1] = left = x[half_ - 1] - ratio_[half_] * left;
    for (int i = right_ - 1; i >= 0; --i) {
      x[i] = left = x[i] - ratio_[i + 1] * left;
      x[end - i] = right = x[end - i] - ratio_[i + 1] * right;
    }
  }

 private:
  int n_, half_, right_;
  double middle_;
  Vector ratio_, inverse_;
};

Vector start(int points) {
  Vector u(points, 0.0);
  for (int i = 0; i < points; ++i) u[i] = 2 * (i + 1) < points + 1 ? 1.0 : 0.0;
  return u;
}

// MGRIT, full approximation scheme: level l solves u[i] = Phi(u[i-1]) + g[i], its C-points are those with i % m == 0.
struct Level {
  BothEnds phi;
  int steps;
  Vector u, v, g;  // [steps + 1, points]: states; on coarse levels what was restricted, and the right-hand side
};

class Mgrit {
 public:
  Mgrit(int steps, int points, double end, int m, int levels, int threads) : n_(points), m_(m), threads_(threads) {
    for (int l = 0; l < levels; ++l, steps /= m) {
      const std::size_t size = static_cast<std::size_t>(steps + 1) * points;
      const std::size_t coarse = l ? size : 0;
      levels_.push_back({BothEnds(points, end / steps), steps, Vector(size), Vector(coarse), Vector(coarse)});
    }
    const Vector u0 = start(points);
    std::copy(u0.begin(), u0.end(), levels_[0].u.begin());  // zero guess everywhere else
  }

  // One V-cycle; returns the residual at the C-points after relaxation, before the correction.
  double cycle() {
    down(0);
    return residual_;
  }

  const Vector& states() const { return levels_[0].u; }
  void relax_at_the_end() { f_relax(0); }

 private:
  void down(int l) {
    if (l + 1 == static_cast<int>(levels_.size())) {
      for (int i = 1; i <= levels_[l].steps; ++i) point(l, i);
      return;
    }
    f_relax(l);
    c_relax(l);
    f_relax(l);
    restrict_to(l + 1);
    down(l + 1);
    correct(l);
    if (l > 0) f_relax(l);  // on the finest level the next cycle begins with it
  }

  void point(int l, int i) {
    Level& level = levels_[l];
    double* u = &level.u[at(i)];
    level.phi.step(&level.u[at(i - 1)], u);
    if (l == 0) return;
    const double* g = &level.g[at(i)];
    for (int j = 0; j < n_; ++j) u[j] += g[j];
  }

  void f_relax(int l) {
    const int steps = levels_[l].steps, slices = (steps + m_ - 1) / m_;
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int s = 0; s < slices; ++s)
      for (int i = s * m_ + 1; i < std::min((s + 1) * m_, steps + 1); ++i) point(l, i);
  }

  void c_relax(int l) {
    const int slices = levels_[l].steps / m_;
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int s = 1; s <= slices; ++s) point(l, s * m_);
  }

  // g of the coarse level: the residual here, plus what makes the restricted states solve it if that is zero.
  void restrict_to(int l) {
    Level &fine = levels_[l - 1], &level = levels_[l];
    for (int i = 0; i <= level.steps; ++i) std::copy_n(&fine.u[at(i * m_)], n_, &level.v[at(i)]);
    level.u = level.v;
    Vector squares(level.steps + 1, 0.0);
#pragma omp parallel num_threads(threads_)
    {
      Vector stepped(n_), coarse(n_);
#pragma omp for schedule(static)
      for (int i = 1; i <= level.steps; ++i) {
        fine.phi.step(&fine.u[at(i * m_ - 1)], stepped.data());
        level.phi.step(&level.v[at(i - 1)], coarse.data());
        for (int j = 0; j < n_; ++j) {
          const double here = level.v[at(i) + j];
          const double r = stepped[j] + (l > 1 ? fine.g[at(i * m_) + j] : 0.0) - here;
          squares[i] += r * r;
          level.g[at(i) + j] = r + here - coarse[j];
        }
      }
    }
    if (l > 1) return;
    double sum = 0;
    for (const double s : squares) sum += s;
    residual_ = std::sqrt(sum);
  }

  void correct(int l) {
    Level &level = levels_[l], &coarse = levels_[l + 1];
    for (int i = 1; i <= coarse.steps; ++i)
      for (int j = 0; j < n_; ++j) level.u[at(i * m_) + j] += coarse.u[at(i) + j] - coarse.v[at(i) + j];
  }

  std::size_t at(int i) const { return static_cast<std::size_t>(i) * n_; }

  int n_, m_, threads_;
  double residual_ = 0;
  std::vector<Level> levels_;
};

void print(const char* name, const Vector& values, bool last = false) {
  std::printf("\"%s\": [", name);
  for (std::size_t i = 0; i < values.size(); ++i) std::printf(i ? ", %.17g" : "%.17g", values[i]);
  std::printf(last ? "]" : "], ");
}

template <class Phi>
Vector time_serial(int steps, int points, double end, int repeats, Vector& u) {
  Vector seconds, v(points);
  for (int r = 0; r < repeats; ++r) {
    const auto begin = Clock::now();
    const Phi phi(points, end / steps);
    u = start(points);
    for (int i = 0; i < steps; ++i) {
      phi.step(u.data(), v.data());
      std::swap(u, v);
    }
    seconds.push_back(seconds_since(begin));
  }
  return seconds;
}

void serial(int steps, int points, double end, int repeats) {
  Vector u;
  print("thomas", time_serial<Thomas>(steps, points, end, repeats, u));
  print("thomas_end", u);
  print("both_ends", time_serial<BothEnds>(steps, points, end, repeats, u));
  print("both_ends_end", u, true);
}

void mgrit(int steps, int points, double end, int m, int levels, int cycles, int threads, int repeats) {
  Vector seconds, residuals, last;
  for (int r = 0; r < repeats; ++r) {
    Mgrit method(steps, points, end, m, levels, threads);
    residuals.clear();
    for (int k = 0; k < cycles; ++k) {
      const auto begin = Clock::now();
      residuals.push_back(method.cycle());
      seconds.push_back(seconds_since(begin));
    }
    method.relax_at_the_end();
    last.assign(method.states().end() - points, method.states().end());
  }
  print("seconds", seconds);
  print("residuals", residuals);
  print("end", last, true);
}

template <int N>
using State = std::array<double, N>;

State<3> lorenz(const State<3>& u) {
  return {10 * (u[1] - u[0]), 28 * u[0] - u[1] - u[0] * u[2], u[0] * u[1] - 8.0 / 3 * u[2]};
}

State<2> brusselator(const State<2>& u) { return {1 + u[0] * u[0] * u[1] - 4 * u[0], 3 * u[0] - u[0] * u[0] * u[1]}; }

template <int N, class F>
State<N> rk4_step(F f, const State<N>& u, double h) {
  const auto moved = [&](const State<N>& k, double a) {
    State<N> v;
    for (int i = 0; i < N; ++i) v[i] = u[i] + a * k[i];
    return v;
  };
  const auto k1 = f(u), k2 = f(moved(k1, h / 2)), k3 = f(moved(k2, h / 2)), k4 = f(moved(k3, h));
  State<N> v;
  for (int i = 0; i < N; ++i) v[i] = u[i] + h / 6 * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i]);
  return v;
}

template <int N, class F>
void rk4(F f, const State<N>& u0, long steps, double end, int repeats) {
  Vector seconds;
  State<N> u;
  for (int r = 0; r < repeats; ++r) {
    const auto begin = Clock::now();
    u = u0;
    for (long i = 0; i < steps; ++i) u = rk4_step<N>(f, u, end / steps);
    seconds.push_back(seconds_since(begin));
  }
  print("seconds", seconds);
  print("end", Vector(u.begin(), u.end()), true);
}

}  // namespace

int main(int count, char** words) {
  const auto whole = [&](int i) { return std::atoi(words[i]); };
  const auto real = [&](int i) { return std::atof(words[i]); };
  const std::string what = count > 1 ? words[1] : "";
  const bool known =
      (what == "serial" && count == 6) || (what == "mgrit" && count == 10) || (what == "rk4" && count == 6);
  if (!known) {
    std::fprintf(stderr, "yardstick: wrong arguments, see the head of its source\n");
    return 2;
  }
  std::printf("{");
  if (what == "serial")
    serial(whole(2), whole(3), real(4), whole(5));
  else if (what == "mgrit")
    mgrit(whole(2), whole(3), real(4), whole(5), whole(6), whole(7), whole(8), whole(9));
  else if (!std::strcmp(words[2], "lorenz"))
    rk4<3>(lorenz, {20, 5, -5}, std::atol(words[3]), real(4), whole(5));
  else
    rk4<2>(brusselator, {0, 1}, std::atol(words[3]), real(4), whole(5));
  std::printf("}\n");
  return 0;
}
