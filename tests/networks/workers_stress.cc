// Threads of csrc/workers.h under a sanitizer: calls for changing numbers of threads, barriers in
// them, several callers at once, errors that come back, and a child that has no threads yet.
#include "../../csrc/workers.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace {

void expect(bool good, const char* what) {
    if (good) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::abort();
}

// Everyone adds to everyone's number in turn: plain memory, so only the barrier keeps order.
void in_turns(int size) {
    std::vector<int> sums(static_cast<size_t>(size), 0);
    workers::Barrier barrier(size);
    workers::pool().run(size, [&](int rank) {
        for (int turn = 0; turn < size; ++turn) {
            sums[static_cast<size_t>((rank + turn) % size)] += turn;
            barrier.wait();
        }
    });
    for (int s : sums) expect(s == size * (size - 1) / 2, "sums");
}

void throwing(int size) {
    int seen = 0;
    try {
        workers::pool().run(size, [&](int rank) {
            if (rank == size - 1) throw std::runtime_error("on purpose");
        });
    } catch (const std::runtime_error&) {
        ++seen;
    }
    expect(seen == 1, "error comes back");
}

}  // namespace

int main() {
    for (int i = 0; i < 150; ++i) in_turns(1 + i % 5);
    for (int i = 1; i < 5; ++i) throwing(i);
    std::vector<std::thread> callers;
    for (int c = 0; c < 3; ++c) {
        callers.emplace_back([] {
            for (int i = 0; i < 50; ++i) in_turns(1 + i % 3);
        });
    }
    for (auto& t : callers) t.join();
    const pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 20; ++i) in_turns(3);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child");
    std::puts("good");
}
