#include "store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace rela {
namespace {

constexpr size_t kChunk = size_t{1} << 20;
constexpr size_t kSlab = size_t{64} << 20;
constexpr size_t kResidentFreeChunks = 8;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kOwnChunks = true;  // heap chunks, so that the sanitizer sees their borders
#else
constexpr bool kOwnChunks = false;
#endif

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

size_t page_size() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

std::runtime_error io_error(const std::string& what, const std::string& where, int err) {
  return std::runtime_error("replay storage in '" + where + "': " + what + ": " +
                            std::strerror(err));
}

}  // namespace

Arena::Arena(size_t chunk_bytes, std::string directory)
    : chunk_bytes_(round_up(chunk_bytes, page_size())), directory_(std::move(directory)) {
  slab_chunks_ = std::max<size_t>(1, kSlab / chunk_bytes_);
  if (directory_.empty()) return;
  std::string name = directory_ + "/replay-XXXXXX";
  fd_ = mkostemp(&name[0], O_CLOEXEC);
  if (fd_ < 0) throw io_error("cannot create a scratch file", directory_, errno);
  unlink(name.c_str());  // the space is returned by the system however the process ends
}

Arena::~Arena() {
  if (directory_.empty() && kOwnChunks) {
    for (const FreeChunk& c : free_) std::free(c.data);
    return;
  }
  for (const Slab& s : slabs_) munmap(s.data, slab_chunks_ * chunk_bytes_);
  if (fd_ >= 0) close(fd_);
}

void Arena::grow() {
  const size_t bytes = slab_chunks_ * chunk_bytes_;
  if (fd_ >= 0 && ftruncate(fd_, file_bytes_ + static_cast<int64_t>(bytes)) != 0) {
    throw io_error("cannot grow the scratch file", directory_, errno);
  }
  const int flags = fd_ >= 0 ? MAP_SHARED : (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd_, fd_ >= 0 ? file_bytes_ : 0);
  if (p == MAP_FAILED) {
    if (fd_ >= 0) throw io_error("cannot map the scratch file", directory_, errno);
    throw std::bad_alloc();
  }
  auto* data = static_cast<uint8_t*>(p);
  slabs_.push_back({data, fd_ >= 0 ? file_bytes_ : 0});
  if (fd_ >= 0) file_bytes_ += static_cast<int64_t>(bytes);
  free_.reserve(free_.size() + slab_chunks_);
  for (size_t i = slab_chunks_; i-- > 0;) free_.push_back({data + i * chunk_bytes_, false});
}

uint8_t* Arena::take() {
  if (free_.empty()) {
    if (directory_.empty() && kOwnChunks) {
      void* p = std::malloc(chunk_bytes_);
      if (!p) throw std::bad_alloc();
      return static_cast<uint8_t*>(p);
    }
    grow();
  }
  const FreeChunk c = free_.back();
  if (fd_ >= 0 && !c.resident) {
    for (const Slab& s : slabs_) {
      if (c.data < s.data || c.data >= s.data + slab_chunks_ * chunk_bytes_) continue;
      const int err = posix_fallocate(fd_, s.file_offset + (c.data - s.data),
                                      static_cast<int64_t>(chunk_bytes_));
      if (err) throw io_error("cannot allocate disk space", directory_, err);
    }
  }
  free_.pop_back();
  return c.data;
}

void Arena::give_back(uint8_t* chunk) {
  bool resident = true;
  if (fd_ < 0 && !kOwnChunks) {
    const auto kept = std::count_if(free_.begin(), free_.end(), [](auto& c) { return c.resident; });
    if (static_cast<size_t>(kept) >= kResidentFreeChunks) {
      madvise(chunk, chunk_bytes_, MADV_DONTNEED);
      resident = false;
    }
  }
  free_.push_back({chunk, resident});
}

Column::Column(size_t row_bytes, std::shared_ptr<Arena> arena)
    : row_bytes_(row_bytes), arena_(std::move(arena)) {
  const size_t rows = arena_->chunk_bytes() / std::max<size_t>(1, row_bytes_);
  while ((size_t{2} << shift_) <= rows && shift_ < 20) ++shift_;
  mask_ = (int64_t{1} << shift_) - 1;
}

Column::~Column() {
  if (!arena_) return;  // moved from
  for (uint8_t* c : chunks_) arena_->give_back(c);
}

size_t Column::wanted_chunk_bytes(size_t row_bytes) { return std::max(kChunk, row_bytes); }

void Column::append(const uint8_t* src, int64_t rows) {
  const int64_t per_chunk = mask_ + 1;
  int64_t at = end_;
  const int64_t stop = end_ + rows;
  while (at < stop) {
    if (static_cast<size_t>((at >> shift_) - first_chunk_) == chunks_.size()) {
      chunks_.push_back(nullptr);
      try {
        chunks_.back() = arena_->take();
      } catch (...) {
        chunks_.pop_back();
        throw;
      }
    }
    const int64_t n = std::min(stop - at, per_chunk - (at & mask_));
    const size_t bytes = static_cast<size_t>(n) * row_bytes_;
    if (bytes) std::memcpy(const_cast<uint8_t*>(row(at)), src, bytes);
    src += bytes;
    at += n;
  }
  end_ = stop;
}

void Column::drop_before(int64_t i) {
  begin_ = i;
  const auto dead = static_cast<size_t>((i >> shift_) - first_chunk_);
  if (dead == 0) return;
  for (size_t k = 0; k < dead; ++k) arena_->give_back(chunks_[k]);
  chunks_.erase(chunks_.begin(), chunks_.begin() + static_cast<std::ptrdiff_t>(dead));
  first_chunk_ += static_cast<int64_t>(dead);
}

void Column::truncate(int64_t i) {
  end_ = i;
  const int64_t used = ((i + mask_) >> shift_) - first_chunk_;
  while (static_cast<int64_t>(chunks_.size()) > std::max<int64_t>(0, used)) {
    arena_->give_back(chunks_.back());
    chunks_.pop_back();
  }
}

void Column::read(int64_t begin, int64_t end, uint8_t* dst) const {
  while (begin < end) {
    const int64_t n = std::min(end - begin, mask_ + 1 - (begin & mask_));
    const size_t bytes = static_cast<size_t>(n) * row_bytes_;
    if (bytes) std::memcpy(dst, row(begin), bytes);
    dst += bytes;
    begin += n;
  }
}

size_t Column::nbytes() const {
  const int64_t first = first_chunk_ << shift_;
  return static_cast<size_t>(end_ - std::min(first, end_)) * row_bytes_ +
         chunks_.capacity() * sizeof(uint8_t*);
}

}  // namespace rela
