// Operational space control of robosuite's fixed-base arms: module common_utils.osc.
//
// The control loop of one environment step (25 physics steps of MuJoCo, the torques of every arm
// computed before each) without Python in between. MuJoCo is called through the addresses of its
// functions in the library that Python has already loaded, so that neither its headers nor a link
// to it are needed; env/robosuite/fast.py is the only caller and checks shapes and types.
//
// O. Khatib, "A unified approach for motion and force control of robot manipulators: the
// operational space formulation", 1987.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "null.h"

namespace py = pybind11;

namespace {

constexpr int kDof = 7;
constexpr double kNullspaceKp = 10.0;  // robosuite's gain towards the initial joint positions

using Vec3 = std::array<double, 3>;
using Mat3 = std::array<double, 9>;  // row major
using Joints = std::array<double, kDof>;
using DoubleArray = py::array_t<double, py::array::c_style>;
using IntArray = py::array_t<int64_t, py::array::c_style>;

// The functions and arrays of one simulation.
struct Sim {
  using Step = void (*)(const void* model, void* data);
  using JacSite = void (*)(const void* model, const void* data, double* jacp, double* jacr,
                           int site);
  using FullM = void (*)(const void* model, double* dst, const double* packed);
  Step step1, step2;
  JacSite jac_site;
  FullM full_m;
  const void* model;
  void* data;
  int nv;
  const double *qpos, *qvel, *qm, *qfrc_bias, *site_xpos, *site_xmat;
  double* ctrl;
};

// What one arm is, and where it is to go; everything else follows from the simulation.
struct Arm {
  int grip_site, base_site;
  bool in_base_frame;  // goals are given in the base's frame, else in the world's
  std::array<int, kDof> qpos_index, qvel_index, ctrl_index;
  Joints low, high, initial;
  std::array<double, 6> kp, kd;
  Vec3 goal_pos;
  Mat3 goal_ori;
};

Vec3 times(const double* m, const Vec3& v) {
  Vec3 out;
  for (int i = 0; i < 3; ++i) out[i] = m[3 * i] * v[0] + m[3 * i + 1] * v[1] + m[3 * i + 2] * v[2];
  return out;
}

// Cholesky factor (lower, in place) of a symmetric positive definite matrix; false if it is not.
template <int N>
bool factorise(std::array<double, N * N>& a) {
  for (int j = 0; j < N; ++j) {
    double diagonal = a[j * N + j];
    for (int k = 0; k < j; ++k) diagonal -= a[j * N + k] * a[j * N + k];
    if (!(diagonal > 0)) return false;
    const double root = std::sqrt(diagonal);
    a[j * N + j] = root;
    for (int i = j + 1; i < N; ++i) {
      double value = a[i * N + j];
      for (int k = 0; k < j; ++k) value -= a[i * N + k] * a[j * N + k];
      a[i * N + j] = value / root;
    }
  }
  return true;
}

template <int N>
std::array<double, N> solve(const std::array<double, N * N>& factor, std::array<double, N> x) {
  for (int i = 0; i < N; ++i) {
    for (int k = 0; k < i; ++k) x[i] -= factor[i * N + k] * x[k];
    x[i] /= factor[i * N + i];
  }
  for (int i = N - 1; i >= 0; --i) {
    for (int k = i + 1; k < N; ++k) x[i] -= factor[k * N + i] * x[k];
    x[i] /= factor[i * N + i];
  }
  return x;
}

// Pseudo-inverse of a symmetric positive semidefinite matrix times x, by Jacobi rotations;
// directions whose eigenvalue is below 1e-15 of the largest are left out, as NumPy's pinv does.
template <int N>
std::array<double, N> pseudo_solve(std::array<double, N * N> a, const std::array<double, N>& x) {
  std::array<double, N * N> vectors{};
  for (int i = 0; i < N; ++i) vectors[i * N + i] = 1;
  for (int sweep = 0; sweep < 50; ++sweep)
    for (int p = 0; p < N; ++p)
      for (int q = p + 1; q < N; ++q) {
        if (a[p * N + q] == 0) continue;
        const double theta = (a[q * N + q] - a[p * N + p]) / (2 * a[p * N + q]);
        const double t = (theta < 0 ? -1 : 1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (int k = 0; k < N; ++k) {
          const double kp = a[k * N + p], kq = a[k * N + q];
          a[k * N + p] = c * kp - s * kq;
          a[k * N + q] = s * kp + c * kq;
        }
        for (int k = 0; k < N; ++k) {
          const double pk = a[p * N + k], qk = a[q * N + k];
          a[p * N + k] = c * pk - s * qk;
          a[q * N + k] = s * pk + c * qk;
          const double kp = vectors[k * N + p], kq = vectors[k * N + q];
          vectors[k * N + p] = c * kp - s * kq;
          vectors[k * N + q] = s * kp + c * kq;
        }
      }
  double largest = 0;
  for (int i = 0; i < N; ++i) largest = std::max(largest, std::abs(a[i * N + i]));
  std::array<double, N> out{};
  for (int e = 0; e < N; ++e) {
    if (!(std::abs(a[e * N + e]) > 1e-15 * largest)) continue;
    double share = 0;
    for (int k = 0; k < N; ++k) share += vectors[k * N + e] * x[k];
    for (int k = 0; k < N; ++k) out[k] += vectors[k * N + e] * share / a[e * N + e];
  }
  return out;
}

template <int N>
std::array<double, N> solve_symmetric(const std::array<double, N * N>& a,
                                      const std::array<double, N>& x) {
  std::array<double, N * N> factor = a;
  return factorise<N>(factor) ? solve<N>(factor, x) : pseudo_solve<N>(a, x);
}

// The symmetric block of `inverse` that starts at `first`, solved for `force`.
Vec3 decouple(const std::array<double, 36>& inverse, int first, const Vec3& force) {
  std::array<double, 9> block;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) block[3 * i + j] = inverse[6 * (first + i) + first + j];
  return solve_symmetric<3>(block, force);
}

// 0.5 * sum of the cross products of the columns of two rotations.
Vec3 orientation_error(const Mat3& desired, const double* current) {
  Vec3 out{};
  for (int c = 0; c < 3; ++c) {
    const double a[3] = {current[c], current[3 + c], current[6 + c]};
    const double b[3] = {desired[c], desired[3 + c], desired[6 + c]};
    out[0] += 0.5 * (a[1] * b[2] - a[2] * b[1]);
    out[1] += 0.5 * (a[2] * b[0] - a[0] * b[2]);
    out[2] += 0.5 * (a[0] * b[1] - a[1] * b[0]);
  }
  return out;
}

class Loop {
 public:
  Loop(const py::dict& functions, uintptr_t model, uintptr_t data, int nv, const py::dict& arrays) {
    auto function = [&](const char* name) {
      return null::required<void>(name, functions[name].cast<uintptr_t>());
    };
    sim_.step1 = reinterpret_cast<Sim::Step>(function("mj_step1"));
    sim_.step2 = reinterpret_cast<Sim::Step>(function("mj_step2"));
    sim_.jac_site = reinterpret_cast<Sim::JacSite>(function("mj_jacSite"));
    sim_.full_m = reinterpret_cast<Sim::FullM>(function("mj_fullM"));
    sim_.model = null::required<void>("model", model);
    sim_.data = null::required<void>("data", data);
    sim_.nv = nv;
    auto array = [&](const char* name) {
      return null::required<double>(name, arrays[name].cast<uintptr_t>());
    };
    sim_.qpos = array("qpos");
    sim_.qvel = array("qvel");
    sim_.qm = array("qM");
    sim_.qfrc_bias = array("qfrc_bias");
    sim_.site_xpos = array("site_xpos");
    sim_.site_xmat = array("site_xmat");
    sim_.ctrl = array("ctrl");
    jacp_.resize(3 * nv);
    jacr_.resize(3 * nv);
    mass_.resize(static_cast<size_t>(nv) * nv);
  }

  void add_arm(int grip_site, int base_site, bool in_base_frame, const IntArray& qpos_index,
               const IntArray& qvel_index, const IntArray& ctrl_index, const DoubleArray& low,
               const DoubleArray& high) {
    Arm arm{};
    arm.grip_site = grip_site;
    arm.base_site = base_site;
    arm.in_base_frame = in_base_frame;
    copy(qpos_index, arm.qpos_index);
    copy(qvel_index, arm.qvel_index);
    copy(ctrl_index, arm.ctrl_index);
    copy(low, arm.low);
    copy(high, arm.high);
    arms_.push_back(arm);
  }

  void set_goal(size_t number, const DoubleArray& kp, const DoubleArray& kd,
                const DoubleArray& initial, const DoubleArray& position,
                const DoubleArray& orientation) {
    Arm& arm = arms_.at(number);
    copy(kp, arm.kp);
    copy(kd, arm.kd);
    copy(initial, arm.initial);
    copy(position, arm.goal_pos);
    copy(orientation, arm.goal_ori);
  }

  // `steps` physics steps; `begun`: the first one's step1 has been done already.
  void run(int steps, bool begun) {
    py::gil_scoped_release release;
    for (int i = 0; i < steps; ++i) {
      if (i > 0 || !begun) sim_.step1(sim_.model, sim_.data);
      sim_.full_m(sim_.model, mass_.data(), sim_.qm);
      for (const Arm& arm : arms_) control(arm);
      sim_.step2(sim_.model, sim_.data);
    }
  }

 private:
  template <typename Array, typename T, size_t N>
  static void copy(const Array& from, std::array<T, N>& to) {
    if (from.size() != static_cast<py::ssize_t>(N))
      throw py::value_error("expected " + std::to_string(N) + " numbers, got " +
                            std::to_string(from.size()));
    for (size_t i = 0; i < N; ++i) to[i] = static_cast<T>(from.data()[i]);
  }

  void control(const Arm& arm) {
    const int nv = sim_.nv;
    sim_.jac_site(sim_.model, sim_.data, jacp_.data(), jacr_.data(), arm.grip_site);
    std::array<double, 6 * kDof> jac;
    std::array<double, 6> velocity{};
    for (int row = 0; row < 6; ++row) {
      const double* full = row < 3 ? &jacp_[row * nv] : &jacr_[(row - 3) * nv];
      for (int j = 0; j < kDof; ++j) jac[row * kDof + j] = full[arm.qvel_index[j]];
      for (int j = 0; j < nv; ++j) velocity[row] += full[j] * sim_.qvel[j];
    }
    std::array<double, 6> wanted = desired(arm, velocity);

    std::array<double, kDof * kDof> mass, factor;
    for (int i = 0; i < kDof; ++i)
      for (int j = 0; j < kDof; ++j)
        mass[i * kDof + j] = mass_[arm.qvel_index[i] * nv + arm.qvel_index[j]];
    factor = mass;
    if (!factorise<kDof>(factor)) throw std::runtime_error("the mass matrix is singular");
    // columns of M^-1 J^T, and J M^-1 J^T
    std::array<Joints, 6> x;
    std::array<double, 36> inverse;
    for (int c = 0; c < 6; ++c) {
      Joints column;
      std::copy_n(&jac[c * kDof], kDof, column.begin());
      x[c] = solve<kDof>(factor, column);
    }
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 6; ++j) {
        double sum = 0;
        for (int k = 0; k < kDof; ++k) sum += jac[i * kDof + k] * x[j][k];
        inverse[6 * i + j] = sum;
      }
    const Vec3 force = decouple(inverse, 0, {wanted[0], wanted[1], wanted[2]});
    const Vec3 torque = decouple(inverse, 3, {wanted[3], wanted[4], wanted[5]});

    // posture: M (kp (q0 - q) - kv q'), minus the part that would move the hand
    const double kv = std::sqrt(kNullspaceKp) * 2;
    Joints pull, pose{};
    for (int i = 0; i < kDof; ++i)
      pull[i] = kNullspaceKp * (arm.initial[i] - sim_.qpos[arm.qpos_index[i]]) -
                kv * sim_.qvel[arm.qvel_index[i]];
    for (int i = 0; i < kDof; ++i)
      for (int j = 0; j < kDof; ++j) pose[i] += mass[i * kDof + j] * pull[j];
    std::array<double, 6> moved{};
    for (int c = 0; c < 6; ++c)
      for (int k = 0; k < kDof; ++k) moved[c] += x[c][k] * pose[k];
    moved = solve_symmetric<6>(inverse, moved);

    for (int i = 0; i < kDof; ++i) {
      double value = 0, taken = 0;
      for (int r = 0; r < 3; ++r) value += jac[r * kDof + i] * force[r];
      for (int r = 0; r < 3; ++r) value += jac[(3 + r) * kDof + i] * torque[r];
      for (int r = 0; r < 6; ++r) taken += jac[r * kDof + i] * moved[r];
      value += sim_.qfrc_bias[arm.qvel_index[i]];
      value += pose[i] - taken;
      sim_.ctrl[arm.ctrl_index[i]] = std::min(std::max(value, arm.low[i]), arm.high[i]);
    }
  }

  // Acceleration towards the goal: kp * error - kd * velocity.
  std::array<double, 6> desired(const Arm& arm, const std::array<double, 6>& velocity) const {
    const double* pos = sim_.site_xpos + 3 * arm.grip_site;
    const double* ori = sim_.site_xmat + 9 * arm.grip_site;
    Vec3 goal = arm.goal_pos;
    Mat3 rotation = arm.goal_ori;
    if (arm.in_base_frame) {
      const double* origin = sim_.site_xpos + 3 * arm.base_site;
      const double* frame = sim_.site_xmat + 9 * arm.base_site;
      goal = times(frame, goal);
      for (int i = 0; i < 3; ++i) goal[i] += origin[i];
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
          double sum = 0;
          for (int k = 0; k < 3; ++k) sum += frame[3 * i + k] * arm.goal_ori[3 * k + j];
          rotation[3 * i + j] = sum;
        }
    }
    const Vec3 turn = orientation_error(rotation, ori);
    std::array<double, 6> out;
    for (int i = 0; i < 3; ++i) {
      out[i] = (goal[i] - pos[i]) * arm.kp[i] - velocity[i] * arm.kd[i];
      out[3 + i] = turn[i] * arm.kp[3 + i] - velocity[3 + i] * arm.kd[3 + i];
    }
    return out;
  }

  Sim sim_{};
  std::vector<Arm> arms_;
  std::vector<double> jacp_, jacr_, mass_;
};

}  // namespace

PYBIND11_MODULE(osc, m) {
  m.doc() = "robosuite's control loop of fixed-base arms, without Python in between.";
  py::class_<Loop>(m, "Loop")
      .def(py::init<const py::dict&, uintptr_t, uintptr_t, int, const py::dict&>(),
           py::arg("functions"), py::arg("model"), py::arg("data"), py::arg("nv"),
           py::arg("arrays"))
      .def("add_arm", null::checked(&Loop::add_arm), py::arg("grip_site"), py::arg("base_site"),
           py::arg("in_base_frame"), py::arg("qpos_index"), py::arg("qvel_index"),
           py::arg("ctrl_index"), py::arg("low"), py::arg("high"))
      .def("set_goal", null::checked(&Loop::set_goal), py::arg("number"), py::arg("kp"),
           py::arg("kd"), py::arg("initial"), py::arg("position"), py::arg("orientation"))
      .def("run", null::checked(&Loop::run), py::arg("steps"), py::arg("begun"));
}
