#include "pnm.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

// The header's numbers. As netpbm reads them: a comment, from # to the end of its line, counts as that end.
class Header {
 public:
  Header(const std::string& path, const std::string& bytes) : path_(path), bytes_(bytes) {}

  char next() {
    char byte = take();
    if (byte != '#') return byte;
    while (byte != '\n' && byte != '\r') byte = take();
    return byte;
  }

  // A number and the one white space behind it.
  int64_t number(const char* name, int64_t most) {
    char byte = next();
    while (is_space(byte)) byte = next();
    int64_t value = 0;
    for (; byte >= '0' && byte <= '9' && value <= most; byte = next()) value = 10 * value + (byte - '0');
    if (!is_space(byte) || value < 1 || value > most) {
      throw Failure(path_ + " has no " + name + " of 1 to " + std::to_string(most) + " in its header; give a PPM or PGM file.");
    }
    return value;
  }

  size_t at() const { return at_; }

 private:
  char take() {
    if (at_ == bytes_.size()) throw Failure(path_ + " ends within its header; give a whole PPM or PGM file.");
    return bytes_[at_++];
  }
  static bool is_space(char byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

  const std::string &path_, &bytes_;
  size_t at_ = 2;  // behind the magic number
};

std::string contents(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) throw Failure(path + " cannot be read (" + std::strerror(errno) + "); check its name.");
  std::string bytes;
  char block[1 << 16];
  for (size_t count; (count = std::fread(block, 1, sizeof(block), file)) > 0;) bytes.append(block, count);
  const bool failed = std::ferror(file) != 0;
  const std::string why = std::strerror(errno);
  std::fclose(file);
  if (failed) throw Failure(path + " cannot be read (" + why + "); check its name.");
  return bytes;
}

// A new file in the folder of `target`, open; the name that it has got is left in *path.
int create_beside(const std::string& target, std::string* path) {
  *path = target + ".XXXXXX";
  return mkstemp(path->data());
}

// A symbolic link keeps its name: what it points to is replaced.
std::string resolved(const std::string& path) {
  char* real = realpath(path.c_str(), nullptr);
  const std::string target = real == nullptr ? path : real;
  std::free(real);
  return target;
}

bool write_all(int file, const std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t count = write(file, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) done += static_cast<size_t>(count);
  }
  return true;
}

// Of the file that is replaced, else what the process gives new files.
mode_t mode_for(const std::string& target) {
  struct stat old;
  if (stat(target.c_str(), &old) == 0) return old.st_mode & 07777;
  const mode_t mask = umask(0);
  umask(mask);
  return 0666 & ~mask;
}

}  // namespace

Pnm read_pnm(const std::string& path) {
  const std::string bytes = contents(path);
  const std::string magic = bytes.substr(0, 2);
  if (magic != "P5" && magic != "P6") throw Failure(path + " is no binary PPM or PGM image; convert it to one (P6 or P5).");
  Header header(path, bytes);
  Pnm image;
  image.channels = magic == "P6" ? 3 : 1;
  image.width = header.number("width", 1 << 24);
  image.height = header.number("height", 1 << 24);
  image.maximum = header.number("largest value", 65535);
  const int64_t wide = image.maximum > 255 ? 2 : 1, count = image.width * image.height * image.channels;
  if (static_cast<int64_t>(bytes.size() - header.at()) < count * wide) {
    throw Failure(path + " is cut off: it holds fewer than its " + std::to_string(image.width) + " x " +
                  std::to_string(image.height) + " pixels; get a whole copy.");
  }
  image.samples.resize(static_cast<size_t>(count));
  const auto* from = reinterpret_cast<const unsigned char*>(bytes.data()) + header.at();
  for (uint16_t& sample : image.samples) {
    sample = static_cast<uint16_t>(wide == 2 ? from[0] << 8 | from[1] : from[0]);
    from += wide;
    if (sample > image.maximum) {
      throw Failure(path + " holds the sample " + std::to_string(sample) + " above its own maximum of " +
                    std::to_string(image.maximum) + "; write the file anew.");
    }
  }
  return image;
}

void check_writable(const std::string& path) {
  struct stat there;
  if (stat(path.c_str(), &there) == 0 && !S_ISREG(there.st_mode)) {
    throw Failure(path + " is not a regular file; choose another output.");
  }
  std::string trial;
  const int file = create_beside(resolved(path), &trial);
  if (file < 0) throw Failure(path + " cannot be written (" + std::string(std::strerror(errno)) + "); choose another output.");
  close(file);
  unlink(trial.c_str());
}

void write_pnm(const std::string& path, const Pnm& image) {
  std::string bytes = (image.channels == 3 ? "P6\n" : "P5\n") + std::to_string(image.width) + " " + std::to_string(image.height) +
                      "\n" + std::to_string(image.maximum) + "\n";
  for (uint16_t sample : image.samples) {
    if (image.maximum > 255) bytes.push_back(static_cast<char>(sample >> 8));
    bytes.push_back(static_cast<char>(sample & 255));
  }
  const std::string target = resolved(path);
  std::string temporary;
  const int file = create_beside(target, &temporary);
  bool good = file >= 0 && write_all(file, bytes) && fchmod(file, mode_for(target)) == 0 && fsync(file) == 0;
  if (file >= 0) good = close(file) == 0 && good;
  if (good && rename(temporary.c_str(), target.c_str()) == 0) return;
  const std::string why = std::string(std::strerror(errno));
  if (file >= 0) unlink(temporary.c_str());
  throw Failure(path + " cannot be written (" + why + "); free some space or choose another place.");
}
