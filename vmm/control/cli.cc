#include "vmm/control/cli.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <functional>

#include "vmm/control/json_reader.h"
#include "vmm/control/usage_error.h"
#include "vmm/control/verbs.h"
#include "vmm/control/version.h"

namespace control {
namespace {

constexpr const char* kExitStatusText = R"(
Exit status:
  0    done; run and restore in the foreground: the guest powered off
  1    refused or failed, for the reason printed; the guest crashed
  2    the command line makes no sense
  125  Quicksave or its host failed
  137  in the foreground: the VM was killed
Files: $QUICKSAVE_HOME, by default ${XDG_STATE_HOME:-~/.local/state}/quicksave)";

// What the parsed options amount to; filled by the callbacks of the verb that was given.
struct Invocation {
  explicit Invocation(Launcher& l) : launcher(l) {}

  Launcher& launcher;
  std::function<Result<int>()> work;

  Output output = Output::text;
  std::string vm;
  std::vector<std::string> vms;
  std::string snapshot;
  RunOptions run_options;
  RestoreOptions restore_options;
  SnapshotCreateOptions create_options;
  RevertOptions revert_options;
  u64 stop_timeout_s = 30;
  bool detach = false;
  bool verify = false;
  bool follow = false;
  bool vmm_log = false;
  bool force = false;
  bool tree = false;
  bool no_wait = false;
};

// For names that have a default: a shell's variable that is not set must not choose it.
std::string refuse_empty(const std::string& name) {
  return name.empty() ? "the name is empty" : "";
}

void add_json(CLI::App& verb, Invocation& call) {
  verb.add_flag_callback(
      "--json", [&call] { call.output = Output::json; }, "print JSON");
}

CLI::App& add_vm_verb(CLI::App& app, Invocation& call, const char* name, const char* text,
                      std::function<Result<int>()> work) {
  CLI::App& verb = *app.add_subcommand(name, text);
  verb.add_option("VM", call.vm, "the VM's name")->required();
  verb.final_callback([&call, work = std::move(work)] { call.work = work; });
  return verb;
}

void add_run(CLI::App& app, Invocation& call) {
  CLI::App& verb = *app.add_subcommand("run", "boot a VM");
  RunOptions& options = call.run_options;
  verb.add_option("--kernel", options.kernel, "bzImage, vmlinux or an ELF file with a PVH note");
  verb.add_option("--initrd", options.initrd, "initial RAM disk");
  verb.add_option("-a,--append", options.append,
                  "added to the kernel command line \"console=ttyS0 panic=-1\"");
  verb.add_option("--append-only", options.append_only, "the whole kernel command line");
  verb.add_option("--disk", options.disks,
                  "FILE,format=qcow2|raw[,mode=overlay|persist|ro][,backing=FILE:FORMAT]..."
                  "[,backing-dir=DIR]; repeatable")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  verb.add_option("-m,--memory", options.memory, "such as 512M, 2G; default 512M");
  verb.add_option("--cpus", options.cpus, "1 to 64; default 1");
  verb.add_option("--name", options.name,
                  "default: generated; such a VM is removed when it ends, unless it was detached")
      ->check(refuse_empty);
  verb.add_flag("-d,--detach", call.detach, "return when the guest runs, and print its name");
  verb.add_option("--on-enospc", options.on_enospc,
                  "pause (default) or error, when the host has no space left");
  CLI::Option* const later = verb.add_flag_callback(
      "--unconfigured", [&options] { options.configured = Configured::later; },
      "only the process and its API: PUT /v1/vm/config, then /v1/vm/state");
  for (const char* machine : {"--kernel", "--initrd", "--append", "--append-only", "--disk",
                              "--memory", "--cpus", "--on-enospc"}) {
    later->excludes(verb.get_option(machine));
  }
  verb.final_callback([&call] {
    call.work = [&call]() -> Result<int> {
      if (call.run_options.configured == Configured::now && call.run_options.kernel.empty()) {
        return make_error(ErrorKind::usage, "--kernel is required")
            .with_hint("quicksave run --help");
      }
      call.run_options.detach = call.detach ? Detach::yes : Detach::no;
      return run(call.run_options, call.launcher);
    };
  });
}

void add_restore(CLI::App& app, Invocation& call) {
  CLI::App& verb = *app.add_subcommand("restore", "start a new VM from a snapshot");
  RestoreOptions& options = call.restore_options;
  verb.add_option("SNAPSHOT", options.snapshot, "VM@NAME")->required();
  verb.add_option("--name", options.name, "the new VM's name; default: generated")
      ->check(refuse_empty);
  verb.add_flag("-d,--detach", call.detach, "return when the guest runs, and print its name");
  verb.add_option("--clock", options.clock,
                  "realtime (default): the guest's clock is right; frozen: it goes on from then");
  verb.add_flag("--verify", call.verify, "check every byte of memory first");
  verb.final_callback([&call] {
    call.work = [&call] {
      call.restore_options.detach = call.detach ? Detach::yes : Detach::no;
      call.restore_options.verify = call.verify ? Verify::yes : Verify::no;
      return restore(call.restore_options, call.launcher);
    };
  });
}

void add_ps(CLI::App& app, Invocation& call) {
  CLI::App& verb = *app.add_subcommand("ps", "list VMs");
  add_json(verb, call);
  verb.final_callback([&call] { call.work = [&call] { return list_vms(call.output); }; });
}

void add_inspect(CLI::App& app, Invocation& call) {
  add_json(add_vm_verb(app, call, "inspect", "tell everything about a VM, as JSON",
                       [&call] { return inspect(call.vm); }),
           call);
}

void add_console(CLI::App& app, Invocation& call) {
  add_vm_verb(app, call, "console", "attach to the serial console; ^] leaves",
              [&call] { return console(call.vm); });
}

void add_logs(CLI::App& app, Invocation& call) {
  CLI::App& verb =
      add_vm_verb(app, call, "logs", "print what the guest wrote on its console", [&call] {
        return logs(call.vm, call.follow ? Follow::yes : Follow::no,
                    call.vmm_log ? LogKind::vmm : LogKind::console);
      });
  verb.add_flag("-f,--follow", call.follow, "go on until the VM ends");
  verb.add_flag("--vmm", call.vmm_log, "Quicksave's own messages instead");
}

void add_pause(CLI::App& app, Invocation& call) {
  add_vm_verb(app, call, "pause", "stop the guest's CPUs",
              [&call] { return set_state(call.vm, VmState::paused); });
}

void add_resume(CLI::App& app, Invocation& call) {
  add_vm_verb(app, call, "resume", "let the guest go on",
              [&call] { return set_state(call.vm, VmState::running); });
}

void add_stop(CLI::App& app, Invocation& call) {
  add_vm_verb(app, call, "stop",
              "press the power button; kill after the timeout, or at once a VM that cannot answer",
              [&call] { return stop(call.vm, call.stop_timeout_s); })
      .add_option("-t,--timeout", call.stop_timeout_s, "seconds; default 30")
      ->check(CLI::Range(0, 86400));
}

void add_kill(CLI::App& app, Invocation& call) {
  add_vm_verb(app, call, "kill", "end a VM now", [&call] { return kill(call.vm); });
}

void add_rm(CLI::App& app, Invocation& call) {
  CLI::App& verb = *app.add_subcommand("rm", "remove VMs, their logs and snapshots");
  verb.add_option("VM", call.vms, "names")->required();
  verb.add_flag("-f,--force", call.force,
                "kill those that run, drop the newest state of persistent disks");
  verb.final_callback([&call] {
    call.work = [&call] { return remove(call.vms, call.force ? Force::yes : Force::no); };
  });
}

// VM@NAME, or VM and NAME as two words.
void add_snapshot_name(CLI::App& verb, Invocation& call, std::function<Result<int>()> work) {
  verb.add_option("SNAPSHOT", call.vms, "VM@NAME, or VM NAME")->required()->expected(1, 2);
  verb.final_callback([&call, work = std::move(work)] {
    call.snapshot = call.vms.size() == 2 ? call.vms[0] + "@" + call.vms[1] : call.vms[0];
    call.work = work;
  });
}

void add_snapshot_create(CLI::App& app, Invocation& call) {
  CLI::App& create = add_vm_verb(app, call, "create", "take a snapshot of a running VM", [&call] {
    call.create_options.vm = call.vm;
    call.create_options.wait = !call.no_wait;
    return snapshot_create(call.create_options, call.output);
  });
  create.add_option("NAME", call.create_options.name, "default: s1, s2, ...")->check(refuse_empty);
  create.add_option("--desc,--description", call.create_options.description, "a line for people");
  create.add_flag("--no-wait", call.no_wait,
                  "return when the guest goes on; the snapshot is written meanwhile");
  add_json(create, call);
}

void add_snapshot(CLI::App& app, Invocation& call) {
  CLI::App& group = *app.add_subcommand("snapshot", "create, list, show, check, delete snapshots");
  group.require_subcommand(1);
  add_snapshot_create(group, call);

  CLI::App& list = *group.add_subcommand("list", "list snapshots");
  list.add_option("VM", call.vm, "only this VM's")->check(refuse_empty);
  list.add_flag("--tree", call.tree, "as a tree; * is where the running VM stands");
  add_json(list, call);
  list.final_callback([&call] {
    call.work = [&call] {
      return snapshot_list(call.vm, call.tree ? ListForm::tree : ListForm::table, call.output);
    };
  });

  CLI::App& show = *group.add_subcommand("show", "print a snapshot's manifest");
  add_json(show, call);
  add_snapshot_name(show, call, [&call] { return snapshot_show(call.snapshot, call.output); });

  CLI::App& check = *group.add_subcommand("check", "read all of a snapshot and compare checksums");
  add_json(check, call);
  add_snapshot_name(check, call, [&call] { return snapshot_check(call.snapshot, call.output); });

  CLI::App& remove = *group.add_subcommand("delete", "delete a snapshot");
  add_snapshot_name(remove, call, [&call] { return snapshot_delete(call.snapshot); });
}

void add_revert(CLI::App& app, Invocation& call) {
  CLI::App& verb = *app.add_subcommand("revert", "take a running VM back to a snapshot, in place");
  RevertOptions& options = call.revert_options;
  verb.add_option("VM", options.vm, "the VM's name, or VM@NAME")->required();
  verb.add_option("NAME", options.snapshot, "default: the snapshot it stands on")
      ->check(refuse_empty);
  verb.add_option("--clock", options.clock,
                  "realtime (default): the guest's clock is right; frozen: it goes on from then");
  verb.add_flag("--verify", call.verify,
                "compare all of memory and state afterwards; disks: snapshot check");
  add_json(verb, call);
  verb.final_callback([&call] {
    call.work = [&call]() -> Result<int> {
      RevertOptions& chosen = call.revert_options;
      chosen.verify = call.verify ? Verify::yes : Verify::no;
      if (chosen.snapshot.empty() && chosen.vm.find('@') != std::string::npos) {
        const SnapshotReference reference = TRY(parse_snapshot_reference(chosen.vm));
        chosen.vm = reference.vm;
        chosen.snapshot = reference.name;
      }
      return revert(chosen, call.output);
    };
  });
}

void add_doctor(CLI::App& app, Invocation& call) {
  CLI::App& verb = *app.add_subcommand("doctor", "tell whether this host can run VMs");
  add_json(verb, call);
  verb.final_callback(
      [&call] { call.work = [&call] { return doctor(call.launcher, call.output); }; });
}

Result<int> print_version(Output output) {
  put(output == Output::json ? fmt::format("{{\"version\":\"{}\"}}\n", kVersion)
                             : fmt::format("quicksave {}\n", kVersion));
  return kExitDone;
}

void add_version(CLI::App& app, Invocation& call) {
  CLI::App& verb = *app.add_subcommand("version", "print the version");
  add_json(verb, call);
  verb.final_callback([&call] { call.work = [&call] { return print_version(call.output); }; });
}

// Its arguments are its own; here it only has a line in the help.
void add_bench(CLI::App& app, Invocation&) {
  app.add_subcommand("bench", "measure: quicksave bench revert | image");
}

void add_soak(CLI::App& app, Invocation&) {
  app.add_subcommand("soak", "revert thousands of times, comparing everything");
}

void add_image(CLI::App& app, Invocation&) {
  app.add_subcommand("image", "make, look at, copy and change disk images");
}

struct Verb {
  std::string_view name;
  void (*add)(CLI::App&, Invocation&);
};
constexpr Verb kVerbs[] = {
    {"run", add_run},         {"restore", add_restore}, {"ps", add_ps},
    {"inspect", add_inspect}, {"console", add_console}, {"logs", add_logs},
    {"pause", add_pause},     {"resume", add_resume},   {"stop", add_stop},
    {"kill", add_kill},       {"rm", add_rm},           {"snapshot", add_snapshot},
    {"revert", add_revert},   {"doctor", add_doctor},   {"version", add_version},
    {"bench", add_bench},     {"soak", add_soak},       {"image", add_image},
};

// Only the verb that was named: building the options of all of them would cost every start. All of
// them for the general help and for a word that is none of them.
void add_verbs(CLI::App& app, Invocation& call, std::string_view word) {
  for (const Verb& verb : kVerbs) {
    if (verb.name == word) return verb.add(app, call);
  }
  for (const Verb& verb : kVerbs) verb.add(app, call);
}

// A file opened as descriptor 0, 1 or 2 would be taken for a standard stream.
void fill_standard_streams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) continue;
    // The lowest free number is the one that is missing. If even this fails, so will all else.
    [[maybe_unused]] const int filled =
        ::open("/dev/null", fd == STDIN_FILENO ? O_RDONLY : O_WRONLY);
  }
}

// Paths, names and texts are kept and sent as JSON.
Result<void> expect_utf8(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& value : option->results()) {
      if (is_utf8(value)) continue;
      return make_error(ErrorKind::usage, "{}: what is given is not UTF-8", option->get_name());
    }
  }
  for (const CLI::App* verb : app.get_subcommands()) TRY(expect_utf8(*verb));
  return {};
}

int parse_and_work(int argc, char** argv, Launcher& launcher) {
  const std::string word = argc > 1 ? argv[1] : "";
  if (word == "bench") return launcher.bench({argv + 2, argv + argc});
  if (word == "soak") return launcher.soak({argv + 2, argv + argc});
  if (word == "image") return launcher.image({argv + 2, argv + argc});

  Invocation call(launcher);
  CLI::App app("Launches virtual machines, takes full snapshots of them, takes them back at once.",
               "quicksave");
  app.require_subcommand(1);
  app.footer(kExitStatusText);
  app.set_version_flag("--version", fmt::format("quicksave {}", kVersion));
  add_verbs(app, call, word);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    put(app.help());
    return kExitDone;
  } catch (const CLI::CallForAllHelp&) {
    put(app.help("", CLI::AppFormatMode::All));
    return kExitDone;
  } catch (const CLI::CallForVersion&) {
    put(fmt::format("quicksave {}\n", kVersion));
    return kExitDone;
  } catch (const CLI::ParseError& error) {
    return report(usage_error(app, error, "quicksave"));
  }
  const Result<void> sound = expect_utf8(app);
  const Result<int> status = sound ? call.work() : sound.error();
  return status ? *status : report(status.error());
}

// What the caller left open is not ours: a VM that outlives its shell would keep the shell's locks
// and pipes.
void close_inherited_descriptors() { ::close_range(STDERR_FILENO + 1, ~0u, 0); }

}  // namespace

int main(int argc, char** argv, Launcher& launcher) {
  fill_standard_streams();
  close_inherited_descriptors();
  // A reader of our output, or a client of our sockets, may go away at any time.
  ::signal(SIGPIPE, SIG_IGN);
  // A file size limit shows as EFBIG, like a full disk.
  ::signal(SIGXFSZ, SIG_IGN);
  return finish_output(parse_and_work(argc, argv, launcher));
}

}  // namespace control
