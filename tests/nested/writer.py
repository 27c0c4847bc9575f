"""A program for a stock Debian guest that writes to its disk and says what it made durable, and how to judge the disk by that.

Each round makes a file of random length and content, fsynced under its name; then one line in a log, fsynced; then one line in
RAM. So every line in the RAM list, and every line in the log, stands for a file that had been fsynced.

As `writer blocks` it begins each round by overwriting one block of an old file in place, and fsyncs that: the line of round N
also stands for block N * BLOCK_STEP modulo BLOCK_COUNT, which from then on holds the number N or a later one. Once /run/w/loud exists each line is
printed on the console, too: what is there was durable, even if the VM is killed in that moment.
"""

import re

BLOCK_BYTES, BLOCK_COUNT, BLOCK_STEP = 4096, 256, 167

# One process forks in a round, and a rest follows: a writer that never rests takes the emulated processor from the VMM itself.
WRITER = r"""#!/usr/bin/perl
use strict; use warnings; use Fcntl; use IO::Handle;
mkdir $_ for '/srv/w', '/run/w';
sysopen(my $random, '/dev/urandom', O_RDONLY) or die;
sysopen(my $folder, '/srv/w', O_RDONLY) or die;
open(my $log, '>>', '/srv/w/log') or die;
open(my $done, '>>', '/run/w/done') or die;
my $blocks;
sub block { return substr(sprintf("%08d %08d\n", @_) x 228, 0, BLOCK_BYTES); }
if (@ARGV) {
  sysopen($blocks, '/srv/blocks', O_RDWR | O_CREAT | O_TRUNC) or die;
  syswrite($blocks, join('', map { block($_, 0) } 0 .. BLOCK_COUNT - 1));
  $blocks->sync or die;
}
for (my $i = 1; ; $i++) {
  if ($blocks) {
    my $number = $i * BLOCK_STEP % BLOCK_COUNT;
    sysseek($blocks, $number * BLOCK_BYTES, 0) or die;
    syswrite($blocks, block($number, $i)) == BLOCK_BYTES or die;
    $blocks->sync or die;
  }
  sysread($random, my $content, 500 + int(rand(9000)));
  open(my $file, '>', "/srv/w/$i.tmp") or die;
  syswrite($file, $content);
  $file->sync or die;
  rename("/srv/w/$i.tmp", "/srv/w/$i") or die;
  $folder->sync or die;
  my $line = `sha256sum /srv/w/$i`;
  $line =~ s{/srv/w/}{};
  syswrite($log, $line);
  $log->sync or die;
  syswrite($done, $line);
  if (-e '/run/w/loud') {
    open(my $console, '>', '/dev/console') or die;
    syswrite($console, "ACK $line");
  }
  select(undef, undef, undef, 0.3);
}
""".replace("BLOCK_BYTES", str(BLOCK_BYTES)).replace("BLOCK_COUNT", str(BLOCK_COUNT)).replace("BLOCK_STEP", str(BLOCK_STEP))


def rounds_on_console(text):
    """The lines of whole rounds that a loud writer printed."""
    return re.findall(r"^ACK ([0-9a-f]{64}  \d+)\n", text, re.M)


def faults_in_blocks(content, acked):
    """What is wrong with the file of blocks, of which the lines `acked` tell; [] if nothing."""
    at_least = {}
    for line in acked:
        round_number = int(line.split()[1])
        block = round_number * BLOCK_STEP % BLOCK_COUNT
        at_least[block] = max(at_least.get(block, 0), round_number)
    if len(content) != BLOCK_BYTES * BLOCK_COUNT:
        return ["%d bytes instead of %d" % (len(content), BLOCK_BYTES * BLOCK_COUNT)]
    faults = []
    for number in range(BLOCK_COUNT):
        block = content[number * BLOCK_BYTES:(number + 1) * BLOCK_BYTES]
        header = re.match(rb"(\d{8}) (\d{8})\n", block)
        if not header or int(header.group(1)) != number or block != (header.group(0) * 228)[:BLOCK_BYTES]:
            faults.append("block %d was written by nobody: %r ..." % (number, block[:18]))
        elif int(header.group(2)) < at_least.get(number, 0):
            faults.append("block %d is of round %s, fsynced was %d" % (number, int(header.group(2)), at_least[number]))
    return faults
