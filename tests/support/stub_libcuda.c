/* As much of libcuda.so.1 (CUDA 13.0) as the lanes call, so that the real cuda-bindings can be driven without a
 * GPU: argument order, handles and whole-struct copies of CUdevResource are then the real ones.
 * 132 SMs; the smallest split gives 15 groups of 8 and leaves 12. Which SMs a resource has stands in its
 * padding, as in the real driver. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600 };
enum { CONTEXT_IS_DESTROYED = 709, INVALID_RESOURCE_TYPE = 914, INVALID_RESOURCE_CONFIGURATION = 915 };
enum { NUM_SMS = 132, GROUP = 8, NUM_GROUPS = 15, MAX_RESOURCES = 32 };

typedef struct {
  int type;
  unsigned char is_of[17]; /* one bit an SM */
  unsigned char unused[92 - 17 - 4];
  unsigned char split_call[4];
  unsigned int sm_count, min_sms, alignment_sms, rest[9];
} Resource;

_Static_assert(sizeof(Resource) == 144, "CUdevResource of CUDA 13 has 144 bytes");

typedef struct { uint64_t kind; unsigned char sms[17]; int live, streams; } Context;
typedef struct { uint64_t kind; Context *context; int live, priority, launched; } Stream;
typedef struct { uint64_t kind; Stream *stream; unsigned flags; int live, queries; } Event;
typedef struct { unsigned char sms[17]; } Description;

static __thread void *current;
static char primary;
static int split_calls, alive;

static int count(const unsigned char *bits) {
  int total = 0;
  for (int i = 0; i < 17; i++) total += __builtin_popcount(bits[i]);
  return total;
}

static void fill(Resource *r, const unsigned char *bits, int split_call) {
  memset(r, 0, sizeof *r);
  memcpy(r->is_of, bits, 17);
  memcpy(r->split_call, &split_call, 4);
  r->sm_count = count(bits);
  r->type = r->sm_count ? 1 : 0;
  r->min_sms = r->alignment_sms = GROUP;
}

static void set_range(unsigned char *bits, int from, int to) {
  memset(bits, 0, 17);
  for (int sm = from; sm < to; sm++) bits[sm / 8] |= 1 << sm % 8;
}

/* Newer bindings ask for functions by name and version instead of by symbol. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
  char newer[64];
  void *self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_NOW);
  snprintf(newer, sizeof newer, "%s_v2", name);
  *function = dlsym(self, newer);
  if (!*function) *function = dlsym(self, name);
  if (found) *found = *function ? 0 : 1;
  return *function ? SUCCESS : 500;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : SUCCESS; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &primary; alive++; return device; }
int cuDevicePrimaryCtxRelease_v2(int device) { alive--; return device; }
int cuCtxSetCurrent(void *context) { current = context; return context == &primary ? SUCCESS : INVALID_CONTEXT; }

int cuDeviceGetName(char *name, int length, int device) {
  strncpy(name, "Stub GPU", length);
  return device;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  for (int i = 0; i < 16; i++) uuid[i] = 0xF0 + i;
  return device;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  *free_bytes = 100, *total = 140;
  return current ? SUCCESS : INVALID_CONTEXT;
}

int cuDeviceGetDevResource(int device, Resource *resource, int type) {
  unsigned char bits[17];
  if (type != 1) return INVALID_RESOURCE_TYPE;
  set_range(bits, 0, NUM_SMS);
  fill(resource, bits, 0);
  return device;
}

int cuDevSmResourceSplitByCount(Resource *result, unsigned *num_groups, const Resource *input, Resource *rest,
                                unsigned flags, unsigned min_sms) {
  int split_call;
  memcpy(&split_call, input->split_call, 4);
  if (flags || split_call || input->sm_count != NUM_SMS || min_sms > NUM_SMS) return INVALID_VALUE;
  int size = (min_sms + GROUP - 1) / GROUP * GROUP, possible = NUM_GROUPS / (size / GROUP);
  if (*num_groups > (unsigned)possible) *num_groups = possible;
  split_calls++;
  unsigned char bits[17];
  for (unsigned i = 0; i < *num_groups; i++) {
    set_range(bits, i * size, (i + 1) * size);
    fill(&result[i], bits, split_calls);
  }
  set_range(bits, *num_groups * size, NUM_SMS);
  fill(rest, bits, split_calls);
  return SUCCESS;
}

int cuDevResourceGenerateDesc(Description **description, const Resource *resources, unsigned num_resources) {
  Description merged = {{0}};
  for (unsigned i = 0; i < num_resources; i++) {
    if (resources[i].type != 1) return INVALID_RESOURCE_TYPE;
    if (memcmp(resources[i].split_call, resources[0].split_call, 4)) return INVALID_RESOURCE_CONFIGURATION;
    for (int b = 0; b < 17; b++) merged.sms[b] |= resources[i].is_of[b];
  }
  if (!num_resources) return INVALID_VALUE;
  *description = malloc(sizeof merged);
  **description = merged;
  return SUCCESS;
}

int cuGreenCtxCreate(Context **context, Description *description, int device, unsigned flags) {
  if (flags != 1) return INVALID_VALUE;
  *context = calloc(1, sizeof **context);
  (*context)->kind = 0xC0, (*context)->live = 1;
  memcpy((*context)->sms, description->sms, 17);
  alive++;
  return device;
}

int cuGreenCtxGetDevResource(Context *context, Resource *resource, int type) {
  if (context->kind != 0xC0 || !context->live || type != 1) return INVALID_HANDLE;
  fill(resource, context->sms, 0);
  return SUCCESS;
}

int cuGreenCtxDestroy(Context *context) {
  if (context->kind != 0xC0 || !context->live || context->streams) return CONTEXT_IS_DESTROYED;
  context->live = 0, alive--;
  return SUCCESS;
}

static int new_stream(Stream **stream, Context *context, unsigned flags, int priority) {
  if (flags != 1 || !current) return INVALID_VALUE;
  *stream = calloc(1, sizeof **stream);
  **stream = (Stream){0x57, context, 1, priority, 0};
  if (context) context->streams++;
  alive++;
  return SUCCESS;
}

int cuGreenCtxStreamCreate(Stream **stream, Context *context, unsigned flags, int priority) {
  return context->kind == 0xC0 ? new_stream(stream, context, flags, priority) : INVALID_HANDLE;
}

int cuStreamCreateWithPriority(Stream **stream, unsigned flags, int priority) {
  return new_stream(stream, NULL, flags, priority);
}

static int bad_stream(const Stream *stream) { return stream->kind != 0x57 || !stream->live; }

int cuStreamGetCtx_v2(Stream *stream, void **context, Context **green) {
  if (bad_stream(stream)) return INVALID_HANDLE;
  *context = &primary, *green = stream->context;
  return SUCCESS;
}

int cuStreamSynchronize(Stream *stream) { return bad_stream(stream) ? INVALID_HANDLE : SUCCESS; }

int cuStreamDestroy_v2(Stream *stream) {
  if (bad_stream(stream)) return INVALID_HANDLE;
  if (stream->context) stream->context->streams--;
  stream->live = 0, alive--;
  return SUCCESS;
}

int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0, *greatest = -5;
  return SUCCESS;
}

static int bad_event(const Event *event) { return event->kind != 0xE0 || !event->live; }

int cuEventCreate(Event **event, unsigned flags) {
  if (!current) return INVALID_CONTEXT;
  *event = calloc(1, sizeof **event);
  **event = (Event){0xE0, NULL, flags, 1, 0};
  alive++;
  return SUCCESS;
}

int cuEventRecord(Event *event, Stream *stream) {
  if (bad_event(event) || bad_stream(stream)) return INVALID_HANDLE;
  event->stream = stream, event->queries = 0;
  return SUCCESS;
}

int cuStreamWaitEvent(Stream *stream, Event *event, unsigned flags) {
  return bad_stream(stream) || bad_event(event) || flags ? INVALID_HANDLE : SUCCESS;
}

/* The first question finds it running. */
int cuEventQuery(Event *event) { return bad_event(event) ? INVALID_HANDLE : event->queries++ ? SUCCESS : NOT_READY; }
int cuEventSynchronize(Event *event) { return bad_event(event) || !(event->flags & 1) ? INVALID_HANDLE : SUCCESS; }

int cuEventElapsedTime_v2(float *ms, Event *start, Event *end) {
  if (bad_event(start) || bad_event(end) || (start->flags | end->flags) & 2) return INVALID_HANDLE;
  *ms = start == end ? 0 : 1.5;
  return SUCCESS;
}

int cuEventDestroy_v2(Event *event) {
  if (bad_event(event)) return INVALID_HANDLE;
  event->live = 0, alive--;
  return SUCCESS;
}

/* For the test: what no real driver tells. */
int stub_alive(void) { return alive; }
int stub_split_calls(void) { return split_calls; }
int stub_priority(const Stream *stream) { return stream->priority; }

void stub_sms(const Stream *stream, unsigned char *bits) {
  if (stream->context) memcpy(bits, stream->context->sms, 17);
  else set_range(bits, 0, NUM_SMS);
}
