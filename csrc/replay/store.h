// Where the bytes live: rows stored back to back in chunks, in RAM or in a memory-mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace rela {

// Hands out equally sized chunks. RAM chunks come from anonymous mappings, so untouched parts cost
// nothing; file chunks from one unlinked scratch file, allocated on disk before use so that a full
// disk is an exception here and not a SIGBUS later.
class Arena {
 public:
  Arena(size_t chunk_bytes, std::string directory);  // empty directory: RAM
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  uint8_t* take();
  void give_back(uint8_t* chunk);
  size_t chunk_bytes() const { return chunk_bytes_; }

 private:
  struct Slab {
    uint8_t* data;
    int64_t file_offset;
  };
  struct FreeChunk {
    uint8_t* data;
    bool resident;
  };

  void grow();

  size_t chunk_bytes_;
  std::string directory_;
  int fd_ = -1;
  int64_t file_bytes_ = 0;
  std::vector<Slab> slabs_;
  std::vector<FreeChunk> free_;
  size_t slab_chunks_ = 1;
};

// A queue of rows: append at the end, drop at the front, read anywhere between.
class Column {
 public:
  Column(size_t row_bytes, std::shared_ptr<Arena> arena);
  ~Column();
  Column(Column&&) = default;
  Column(const Column&) = delete;
  Column& operator=(const Column&) = delete;

  const uint8_t* row(int64_t i) const {
    return chunks_[static_cast<size_t>((i >> shift_) - first_chunk_)] +
           static_cast<size_t>(i & mask_) * row_bytes_;
  }
  void append(const uint8_t* src, int64_t rows);
  void drop_before(int64_t i);
  void truncate(int64_t i);
  void read(int64_t begin, int64_t end, uint8_t* dst) const;

  size_t row_bytes() const { return row_bytes_; }
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }
  size_t nbytes() const;  // touched by rows, dead rows of the first chunk included

  static size_t wanted_chunk_bytes(size_t row_bytes);

 private:
  size_t row_bytes_;
  std::shared_ptr<Arena> arena_;
  int shift_ = 0;
  int64_t mask_ = 0;
  int64_t first_chunk_ = 0;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  std::vector<uint8_t*> chunks_;
};

}  // namespace rela
