/* Reads and writes a tree as a user's program does, at the speed of C, and measures the time itself.

   Usage: reader DIRECTORY walk | stat COUNT | files COUNT | sequential FILE | churn COUNT | list | look NAME...
   with an optional last argument `cold`. Paths begin at the directory, as they do in a container.

   The program first drops the caches: a tree is up to 20 % slower if other trees were read while its dentries and
   inodes were made, because they are then further apart in memory. Warm: one untimed pass, then passes for at least a
   quarter of a second. Cold: after the choice of files the program drops the caches again, then makes one pass. `look`
   drops dentries before each pass, so that every lookup reaches the filesystem.

   Prints {"seconds": ..., "amount": ..., "passes": ...}; amount is the entries, files or bytes of one pass. */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 20, LOOK_PASSES = 100, CHURN_BYTES = 1500 };
static const double WARM_SECONDS = 0.25;

static char buffer[PIECE];
static char **paths; /* files of the tree, names to look up, or the one file to read */
static size_t count, room;

static void add(const char *path) {
  if (count == room) {
    room = room ? room * 2 : 1024;
    paths = realloc(paths, room * sizeof *paths);
    if (!paths) err(1, "realloc");
  }
  paths[count++] = strdup(path);
}

/* List a directory and lstat every entry, down to the leaves; with `keep` also remember the regular files. */
static long long descend(int parent, const char *name, const char *path, int keep) {
  int handle = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  DIR *directory = handle < 0 ? NULL : fdopendir(handle);
  if (!directory) err(1, "%s", path);
  long long entries = 0;
  for (struct dirent *entry; (entry = readdir(directory));) {
    struct stat found;
    char below[4096];
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    if (fstatat(handle, entry->d_name, &found, AT_SYMLINK_NOFOLLOW)) err(1, "%s/%s", path, entry->d_name);
    entries++;
    if (keep || S_ISDIR(found.st_mode)) snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
    if (keep && S_ISREG(found.st_mode)) add(below + 2);
    if (S_ISDIR(found.st_mode)) entries += descend(handle, entry->d_name, below, keep);
  }
  closedir(directory);
  return entries;
}

static int by_name(const void *left, const void *right) { return strcmp(*(char **)left, *(char **)right); }

/* Choose at most `most` regular files: the same in every view of a tree, in an order unlike the directories'. */
static void choose(size_t most) {
  descend(AT_FDCWD, ".", ".", 1);
  qsort(paths, count, sizeof *paths, by_name);
  unsigned long long state = 1;
  for (size_t left = count; left > 1; left--) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    size_t other = (state >> 33) % left;
    char *swapped = paths[left - 1];
    paths[left - 1] = paths[other];
    paths[other] = swapped;
  }
  if (count > most) count = most;
}

static long long walk(void) { return descend(AT_FDCWD, ".", ".", 0); }

static long long stat_all(void) {
  struct stat found;
  for (size_t i = 0; i < count; i++)
    if (lstat(paths[i], &found)) err(1, "%s", paths[i]);
  return count;
}

static long long read_one(const char *path) {
  long long total = 0;
  ssize_t size;
  int handle = open(path, O_RDONLY | O_CLOEXEC);
  if (handle < 0) err(1, "%s", path);
  while ((size = read(handle, buffer, PIECE)) > 0) total += size;
  if (size < 0) err(1, "%s", path);
  close(handle);
  return total;
}

static long long read_files(void) {
  for (size_t i = 0; i < count; i++) read_one(paths[i]);
  return count;
}

static long long sequential(void) { return read_one(paths[0]); }

/* Create and write every file, then remove them all. */
static long long churn(void) {
  for (size_t i = 0; i < count; i++) {
    int handle = open(paths[i], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (handle < 0 || write(handle, buffer, CHURN_BYTES) != CHURN_BYTES) err(1, "%s", paths[i]);
    close(handle);
  }
  for (size_t i = 0; i < count; i++)
    if (unlink(paths[i])) err(1, "%s", paths[i]);
  return count;
}

static long long list(void) {
  long long entries = 0;
  DIR *directory = opendir(".");
  if (!directory) err(1, ".");
  while (readdir(directory)) entries++;
  closedir(directory);
  return entries - 2;
}

static void forget(const char *what) {
  int handle = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
  if (handle < 0 || write(handle, what, 1) != 1) err(1, "drop_caches");
  close(handle);
}

static void forget_all(void) {
  sync();
  forget("3");
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static void report(double seconds, long long amount, int passes) {
  printf("{\"seconds\": %.9f, \"amount\": %lld, \"passes\": %d}\n", seconds, amount, passes);
}

static void measure(long long (*pass)(void), int cold) {
  long long amount;
  int passes = 0;
  if (cold)
    forget_all();
  else
    pass();
  double begin = now(), seconds;
  do {
    amount = pass();
    passes++;
    seconds = now() - begin;
  } while (!cold && seconds < WARM_SECONDS);
  report(seconds, amount, passes);
}

/* Untimed passes come first: when the kernel drops old dentries, the filesystem has work, which must not be timed. */
static void look(void) {
  double seconds = 0, start = now();
  do {
    forget("2");
    stat_all();
  } while (now() - start < WARM_SECONDS);
  for (int pass = 0; pass < LOOK_PASSES; pass++) {
    forget("2");
    double begin = now();
    stat_all();
    seconds += now() - begin;
  }
  report(seconds, count, LOOK_PASSES);
}

int main(int words, char **word) {
  if (words < 3) errx(2, "usage: see the head of reader.c");
  if (chdir(word[1])) err(1, "%s", word[1]);
  const char *what = word[2], *operand = words > 3 ? word[3] : "";
  int cold = !strcmp(word[words - 1], "cold");
  memset(buffer, 'x', sizeof buffer);
  forget_all();
  if (!strcmp(what, "walk")) {
    measure(walk, cold);
  } else if (!strcmp(what, "list")) {
    measure(list, cold);
  } else if (!strcmp(what, "stat") || !strcmp(what, "files")) {
    choose(strtoul(operand, NULL, 10));
    measure(*what == 's' ? stat_all : read_files, cold);
  } else if (!strcmp(what, "sequential")) {
    add(operand);
    measure(sequential, cold);
  } else if (!strcmp(what, "churn")) {
    for (unsigned long i = 0; i < strtoul(operand, NULL, 10); i++) {
      char name[32];
      snprintf(name, sizeof name, "churn%lu", i);
      add(name);
    }
    measure(churn, cold);
  } else if (!strcmp(what, "look")) {
    for (int i = 3; i < words; i++) add(word[i]);
    look();
  } else {
    errx(2, "%s: unknown", what);
  }
}
