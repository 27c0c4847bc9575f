#include "vmm/control/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "vmm/base/log.h"

namespace control {
namespace {

// unix(7): sun_path has 108 bytes. A longer path goes through a descriptor of its directory, which
// `directory` keeps open until bind or connect is done.
struct Address {
  sockaddr_un name{};
  base::Fd directory;
};

Result<Address> address_of(const std::string& path) {
  Address address;
  address.name.sun_family = AF_UNIX;
  std::string name = path;
  if (name.size() >= sizeof address.name.sun_path) {
    const std::size_t slash = path.rfind('/');
    address.directory = TRY(base::open_file(path.substr(0, slash), O_PATH | O_DIRECTORY));
    name = fmt::format("/proc/self/fd/{}/{}", address.directory.get(), path.substr(slash + 1));
  }
  if (name.size() >= sizeof address.name.sun_path) {
    return make_error(ErrorKind::usage, "socket \"{}\": the file name is too long", path);
  }
  std::memcpy(address.name.sun_path, name.c_str(), name.size() + 1);
  return address;
}

Result<base::Fd> new_socket(int flags) {
  base::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  if (!fd) return errno_error("create a unix socket");
  return fd;
}

const sockaddr* generic(const sockaddr_un& name) {
  return reinterpret_cast<const sockaddr*>(&name);
}

// Whether somebody listens. Never waits: a listener whose queue is full is one, too.
Result<bool> is_live(const std::string& path) {
  const Address address = TRY(address_of(path));
  const base::Fd fd = TRY(new_socket(SOCK_NONBLOCK));
  return ::connect(fd.get(), generic(address.name), sizeof address.name) == 0 || errno == EAGAIN;
}

Result<void> remove_stale(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return errno_error("look at \"{}\"", path);
  }
  if (!S_ISSOCK(status.st_mode)) {
    return make_error(ErrorKind::exists, "\"{}\" is there and is no socket", path)
        .with_hint("remove it by hand if nobody needs it");
  }
  if (TRY(is_live(path))) {
    return make_error(ErrorKind::busy, "a live process listens on \"{}\"", path)
        .with_hint(
            "another QUICKSAVE_HOME with the same runtime directory? give the VM another name");
  }
  if (::unlink(path.c_str()) != 0) return errno_error("remove stale socket \"{}\"", path);
  return {};
}

bool is_own_user(const base::Fd& client) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(client.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         peer.uid == ::geteuid();
}

}  // namespace

Result<base::Fd> listen_unix(const std::string& path) {
  TRY(remove_stale(path));
  const Address address = TRY(address_of(path));
  base::Fd fd = TRY(new_socket(SOCK_NONBLOCK));
  // The directory is 0700, so the mode between bind and chmod harms nobody.
  if (::bind(fd.get(), generic(address.name), sizeof address.name) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(fd.get(), 64) != 0) {
    return errno_error("listen on \"{}\"", path);
  }
  return fd;
}

Result<base::Fd> connect_unix(const std::string& path) {
  const Address address = TRY(address_of(path));
  base::Fd fd = TRY(new_socket(0));
  while (::connect(fd.get(), generic(address.name), sizeof address.name) != 0) {
    if (errno != EINTR) return errno_error("connect to \"{}\"", path);
  }
  return fd;
}

Result<base::Fd> accept_unix(const base::Fd& listener) {
  for (;;) {
    base::Fd client(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!client) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EAGAIN) return base::Fd();
      return errno_error("accept a client");
    }
    if (is_own_user(client)) return client;
    base::log(base::LogLevel::warning, "turned away a client of another user");
  }
}

}  // namespace control
