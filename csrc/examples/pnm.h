// Images as binary PPM (P6, colour) and PGM (P5, grey) files of 8 or 16 bits a sample; the format is netpbm's, ppm(5) and pgm(5).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// What a user is told: one sentence.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Pnm {
  int64_t width = 0, height = 0, channels = 0;  // 3 or 1
  int64_t maximum = 0;                          // that stands for white, 1 to 65535
  std::vector<uint16_t> samples;                // [height, width, channels]
};

// Throws Failure for a file that cannot be read or is no such image.
Pnm read_pnm(const std::string& path);

// Throws Failure where `path` could not be written.
void check_writable(const std::string& path);

// Written beside `path` and renamed when it is whole. Throws Failure, with whatever was at `path` still there.
void write_pnm(const std::string& path, const Pnm& image);
