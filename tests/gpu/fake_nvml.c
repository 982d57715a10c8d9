/* A libnvidia-ml that the tests own: the real pynvml loads it and cannot tell.
 *
 * One truth per device: a list of loads, each from a moment on (how busy, how many SMs, tensor cores, watts, bytes in use). The ring of
 * utilisation samples, the GPM samples, the energy counter, memory and the shares of the processes are all worked out from it for the
 * fake's own time, so that what a program under test should measure is known to the microsecond.
 *
 * The nvml* functions have the signatures of NVIDIA's API reference (https://docs.nvidia.com/deploy/nvml-api/), of which only what
 * is asked for is here. The fake_* functions set the scene. Built with -DOLD_DRIVER it lacks the newer functions, as old drivers do.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef uint32_t u32;
typedef uint64_t u64;

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, LOST = 15 };
enum { HANGS = 100000, GPUS = 16, SLICES = 16, DEVICES = GPUS + SLICES, LOADS = 4096, PROCESSES = 32, RULES = 128, CALLS = 64, METRICS = 8 };

typedef struct { u64 from; double busy, sm, tensor, watts; u64 used; } load_t;
typedef struct { u32 pid; u64 used; double share; } process_t;
typedef struct {
    int used, mig_on, gi, ci, parent, gpm;
    u32 gi_slices, ci_slices;
    char uuid[96], name[96];
    u64 total, period, depth, energy_base, limit_mw;
    int has_energy;
    load_t loads[LOADS];
    u32 n_loads;
    process_t processes[PROCESSES];
    u32 n_processes;
} device_t;

static device_t devices[DEVICES];
static u32 n_gpus;
static int initialised, init_error;
static u64 now_us;   /* 0: the machine's own clock */
static struct { char name[48]; int device, code; } rules[RULES];
static u32 n_rules;
static struct { char name[48]; u64 count; } calls[CALLS];
static u32 n_calls;

/* --- setting the scene -------------------------------------------------------------------------------------------------------- */

u64 fake_now(void) {
    if (now_us) return now_us;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (u64)t.tv_sec * 1000000u + (u64)t.tv_nsec / 1000u;
}
void fake_set_now(u64 us) { now_us = us; }

void fake_reset(u32 gpus) {
    memset(devices, 0, sizeof devices);
    n_gpus = gpus;
    initialised = init_error = 0;
    n_rules = n_calls = 0;
    memset(calls, 0, sizeof calls);
    for (u32 i = 0; i < gpus; i++) {
        device_t *d = &devices[i];
        d->used = 1;
        d->parent = -1;
        snprintf(d->uuid, sizeof d->uuid, "GPU-%08x-0000-4000-8000-00000000000%x", 0xa0000000u + i * 0x01010101u, i);
        snprintf(d->name, sizeof d->name, "NVIDIA H100 80GB HBM3");
        d->total = 85520809984u;
        d->period = 166667;
        d->depth = 120;
        d->has_energy = d->gpm = 1;
        d->limit_mw = 700000;
    }
}
void fake_device(u32 i, const char *uuid, const char *name, u64 total, int gpm, int has_energy) {
    device_t *d = &devices[i];
    snprintf(d->uuid, sizeof d->uuid, "%s", uuid);
    snprintf(d->name, sizeof d->name, "%s", name);
    d->total = total;
    d->gpm = gpm;
    d->has_energy = has_energy;
}
void fake_ring(u32 i, u64 period_us, u64 depth) { devices[i].period = period_us; devices[i].depth = depth; }
void fake_init_error(int code) { init_error = code; }
/* Any function of this name on this device (-1: on every one) answers with the code; "" is every function, code 0 lifts the rule, and a code
 * of 100000 and more is the time that it takes to answer: so many milliseconds above it. */
void fake_error(int device, const char *name, int code) {
    u32 i = 0;
    while (i < n_rules && (rules[i].device != device || strcmp(rules[i].name, name))) i++;
    if (i == n_rules && n_rules < RULES) n_rules++;
    rules[i].device = device;
    rules[i].code = code;
    snprintf(rules[i].name, sizeof rules[i].name, "%s", name);
}
void fake_load(u32 i, u64 from, double busy, double sm, double tensor, double watts, u64 used) {
    device_t *d = &devices[i];
    if (d->n_loads == LOADS) abort();
    d->loads[d->n_loads++] = (load_t){from, busy, sm, tensor, watts, used};
}
void fake_mig_on(u32 i) { devices[i].mig_on = 1; }
u32 fake_mig(u32 parent, const char *uuid, u32 gi, u32 ci, u32 gi_slices, u32 ci_slices, u64 bytes) {
    u32 i = GPUS;
    while (i < DEVICES && devices[i].used) i++;
    if (i == DEVICES) abort();
    device_t *d = &devices[i];
    d->used = 1;
    d->parent = (int)parent;
    d->gi = (int)gi;
    d->ci = (int)ci;
    d->gi_slices = gi_slices;
    d->ci_slices = ci_slices;
    d->total = bytes;
    d->period = devices[parent].period;
    d->gpm = devices[parent].gpm;
    snprintf(d->uuid, sizeof d->uuid, "%s", uuid);
    char model[65];
    snprintf(model, sizeof model, "%.64s", devices[parent].name);
    snprintf(d->name, sizeof d->name, "%s MIG %ug.%ugb", model, gi_slices, (u32)(bytes >> 30));
    devices[parent].mig_on = 1;
    return i;
}
void fake_process(u32 i, u32 pid, u64 used, double share) {
    device_t *d = &devices[i];
    u32 k = 0;
    while (k < d->n_processes && d->processes[k].pid != pid) k++;
    if (k == PROCESSES) abort();
    if (k == d->n_processes) d->n_processes++;
    d->processes[k] = (process_t){pid, used, share};
}
void fake_no_processes(u32 i) { devices[i].n_processes = 0; }
u64 fake_calls(const char *name) {
    for (u32 i = 0; i < n_calls; i++) if (!strcmp(calls[i].name, name)) return calls[i].count;
    return 0;
}

/* For programs that know nothing of this: FAKE_GPUS=n are there from the start, FAKE_BUSY=share busy since the epoch with FAKE_WATTS. */
__attribute__((constructor)) static void from_environment(void) {
    const char *gpus = getenv("FAKE_GPUS"), *busy = getenv("FAKE_BUSY"), *watts = getenv("FAKE_WATTS");
    if (!gpus) return;
    fake_reset((u32)atoi(gpus));
    double part = busy ? atof(busy) : 0.0;
    for (u32 i = 0; i < n_gpus; i++) fake_load(i, fake_now() - 60000000u, part, part, part, watts ? atof(watts) : 0.0, 1u << 30);
}

/* --- the truth ---------------------------------------------------------------------------------------------------------------- */

static double rate(const load_t *l, int which) {
    return which == 1 ? l->busy : which == 2 ? l->sm : which == 5 ? l->tensor : l->watts;
}
/* The integral of a rate over time, in rate x microseconds. */
static double integral(const device_t *d, int which, u64 from, u64 to) {
    double sum = 0;
    for (u32 i = 0; i < d->n_loads; i++) {
        u64 start = d->loads[i].from, end = i + 1 < d->n_loads ? d->loads[i + 1].from : UINT64_MAX;
        if (start < from) start = from;
        if (end > to) end = to;
        if (end > start) sum += rate(&d->loads[i], which) * (double)(end - start);
    }
    return sum;
}
static u64 bytes_used(const device_t *d) {
    u64 t = fake_now(), used = 0;
    for (u32 i = 0; i < d->n_loads && d->loads[i].from <= t; i++) used = d->loads[i].used;
    return used;
}
static u64 millijoules(const device_t *d) { return (u64)(integral(d, 0, 0, fake_now()) / 1000.0); }
void fake_counter_reset(u32 i) { devices[i].energy_base = millijoules(&devices[i]); }

/* --- the driver --------------------------------------------------------------------------------------------------------------- */

static void counted(const char *name) {
    u32 i = 0;
    while (i < n_calls && strcmp(calls[i].name, name)) i++;
    if (i == CALLS) return;
    if (i == n_calls) snprintf(calls[n_calls++].name, sizeof calls[0].name, "%s", name);
    calls[i].count++;
}
static int refused(const device_t *d, const char *name) {
    counted(name);
    if (!initialised) return UNINITIALIZED;
    if (d && (d < devices || d >= devices + DEVICES || !d->used)) return INVALID;
    int of = d ? (int)(d - devices) : -1;
    for (u32 i = 0; i < n_rules; i++)
        if (rules[i].code && (rules[i].device == of || rules[i].device == -1) && (!rules[i].name[0] || !strcmp(rules[i].name, name)))
        {
            if (rules[i].code < HANGS) return rules[i].code;
            struct timespec t = {(rules[i].code - HANGS) / 1000, (rules[i].code - HANGS) % 1000 * 1000000};
            nanosleep(&t, NULL);
        }
    return OK;
}
#define ASKED(d) do { int code = refused((d), __func__); if (code) return code; } while (0)

int nvmlInitWithFlags(u32 flags) {
    (void)flags;
    counted("nvmlInit");
    if (init_error) return init_error;
    initialised++;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    counted("nvmlShutdown");
    if (!initialised) return UNINITIALIZED;
    initialised--;
    return OK;
}
const char *nvmlErrorString(int code) { static char text[32]; snprintf(text, sizeof text, "fake error %d", code); return text; }
static int text_out(char *out, u32 size, const char *text) {
    if (strlen(text) >= size) return TOO_SMALL;
    strcpy(out, text);
    return OK;
}
int nvmlSystemGetDriverVersion(char *out, u32 size) { ASKED(NULL); return text_out(out, size, "580.65.06"); }
int nvmlSystemGetNVMLVersion(char *out, u32 size) { ASKED(NULL); return text_out(out, size, "13.580.65.06"); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { ASKED(NULL); *out = 13000; return OK; }
int nvmlSystemGetCudaDriverVersion(int *out) { ASKED(NULL); *out = 13000; return OK; }

int nvmlDeviceGetCount_v2(u32 *out) { ASKED(NULL); *out = n_gpus; return OK; }
int nvmlDeviceGetHandleByIndex_v2(u32 i, device_t **out) {
    if (i >= n_gpus) return INVALID;
    ASKED(&devices[i]);
    *out = &devices[i];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **out) {
    for (u32 i = 0; i < DEVICES; i++)
        if (devices[i].used && !strcmp(devices[i].uuid, uuid)) {
            ASKED(&devices[i]);
            *out = &devices[i];
            return OK;
        }
    return initialised ? NOT_FOUND : UNINITIALIZED;
}
int nvmlDeviceGetIndex(device_t *d, u32 *out) { ASKED(d); *out = (u32)(d - devices); return OK; }
int nvmlDeviceGetUUID(device_t *d, char *out, u32 size) { ASKED(d); return text_out(out, size, d->uuid); }
int nvmlDeviceGetName(device_t *d, char *out, u32 size) { ASKED(d); return text_out(out, size, d->name); }
int nvmlDeviceGetCudaComputeCapability(device_t *d, int *major, int *minor) {
    ASKED(d); *major = d->gpm ? 9 : 8; *minor = 0; return OK;
}
int nvmlDeviceGetArchitecture(device_t *d, u32 *out) { ASKED(d); *out = d->gpm ? 9 : 7; return OK; }
int nvmlDeviceGetMinorNumber(device_t *d, u32 *out) { ASKED(d); *out = (u32)(d - devices); return OK; }
int nvmlDeviceGetEnforcedPowerLimit(device_t *d, u32 *out) { ASKED(d); *out = (u32)d->limit_mw; return OK; }
int nvmlDeviceGetPowerManagementLimit(device_t *d, u32 *out) { ASKED(d); *out = (u32)d->limit_mw; return OK; }

typedef struct { unsigned long long total, free, used; } memory_t;
int nvmlDeviceGetMemoryInfo(device_t *d, memory_t *out) {
    ASKED(d);
    u64 used = bytes_used(d);
    *out = (memory_t){d->total, d->total - used, used};
    return OK;
}
typedef struct { u32 version; unsigned long long total, reserved, free, used; } memory2_t;
int nvmlDeviceGetMemoryInfo_v2(device_t *d, memory2_t *out) {
    ASKED(d);
    u64 used = bytes_used(d);
    out->total = d->total; out->reserved = 0; out->free = d->total - used; out->used = used;
    return OK;
}
int nvmlDeviceGetPowerUsage(device_t *d, u32 *out) {
    ASKED(d);
    u64 t = fake_now();
    *out = (u32)(integral(d, 0, t - 100000, t) / 100.0);   /* mW over the last 100 ms */
    return OK;
}
int nvmlDeviceGetTemperature(device_t *d, u32 sensor, u32 *out) { (void)sensor; ASKED(d); *out = 40; return OK; }
int nvmlDeviceGetComputeMode(device_t *d, u32 *out) { ASKED(d); *out = 0; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(device_t *d, u64 *out) {
    ASKED(d);
    if (!d->has_energy || d->parent >= 0) return UNSUPPORTED;
    *out = millijoules(d) - d->energy_base;
    return OK;
}
typedef struct { u32 gpu, memory; } utilization_t;
static u32 percent(const device_t *d, u64 at) { return (u32)lround(100.0 * integral(d, 1, at - d->period, at) / (double)d->period); }
int nvmlDeviceGetUtilizationRates(device_t *d, utilization_t *out) {
    ASKED(d);
    if (d->mig_on || d->parent >= 0) return UNSUPPORTED;
    *out = (utilization_t){percent(d, fake_now() / d->period * d->period), 0};
    return OK;
}

#ifndef OLD_DRIVER
typedef union { double d; u32 u; u64 ull; } value_t;
typedef struct { unsigned long long at; value_t value; } sample_t;
int nvmlDeviceGetSamples(device_t *d, int type, u64 since, int *value_type, u32 *count, sample_t *out) {
    ASKED(d);
    if (type != 1 || d->mig_on || d->parent >= 0) return UNSUPPORTED;
    *value_type = 1;
    if (!out) { *count = (u32)d->depth; return OK; }
    u64 last = fake_now() / d->period, first = last >= d->depth ? last - d->depth + 1 : 1;
    u32 n = 0;
    for (u64 k = first; k <= last && n < *count; k++)
        if (k * d->period > since) { out[n].at = k * d->period; out[n].value.ull = 0; out[n++].value.u = percent(d, k * d->period); }
    *count = n;
    return n ? OK : NOT_FOUND;
}
#endif

typedef struct { u32 pid; unsigned long long used; u32 gi, ci; } running_t;
int nvmlDeviceGetComputeRunningProcesses_v3(device_t *d, u32 *count, running_t *out) {
    ASKED(d);
    u32 room = *count;
    *count = d->n_processes;
    if (room < d->n_processes || (!out && d->n_processes)) return TOO_SMALL;
    for (u32 i = 0; i < d->n_processes; i++)
        out[i] = (running_t){d->processes[i].pid, d->processes[i].used, d->parent >= 0 ? (u32)d->gi : ~0u, d->parent >= 0 ? (u32)d->ci : ~0u};
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v2(device_t *d, u32 *count, running_t *out) { return nvmlDeviceGetComputeRunningProcesses_v3(d, count, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *d, u32 *count, running_t *out) { (void)out; ASKED(d); *count = 0; return OK; }

typedef struct { u32 pid; unsigned long long at; u32 sm, memory, encoder, decoder; } usage_t;
int nvmlDeviceGetProcessUtilization(device_t *d, usage_t *out, u32 *count, u64 since) {
    ASKED(d);
    if (d->mig_on || d->parent >= 0) return UNSUPPORTED;
    if (!out) { *count = d->n_processes; return d->n_processes ? TOO_SMALL : OK; }
    u64 at = fake_now() / d->period * d->period;
    u32 n = 0;
    for (u32 i = 0; i < d->n_processes && n < *count; i++) {
        u32 sm = (u32)lround(d->processes[i].share * percent(d, at));
        if (at > since && sm) out[n++] = (usage_t){d->processes[i].pid, at, sm, 0, 0, 0};
    }
    *count = n;
    return n ? OK : NOT_FOUND;
}

int nvmlDeviceGetMigMode(device_t *d, u32 *current, u32 *pending) { ASKED(d); *current = *pending = (u32)d->mig_on; return OK; }
int nvmlDeviceIsMigDeviceHandle(device_t *d, u32 *out) { ASKED(d); *out = d->parent >= 0; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(device_t *d, u32 *out) { ASKED(d); *out = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(device_t *d, u32 index, device_t **out) {
    ASKED(d);
    u32 k = 0;
    for (u32 i = GPUS; i < DEVICES; i++)
        if (devices[i].used && devices[i].parent == (int)(d - devices) && k++ == index) { *out = &devices[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t *d, device_t **out) {
    ASKED(d);
    if (d->parent < 0) return INVALID;
    *out = &devices[d->parent];
    return OK;
}
int nvmlDeviceGetGpuInstanceId(device_t *d, u32 *out) { ASKED(d); if (d->parent < 0) return INVALID; *out = (u32)d->gi; return OK; }
int nvmlDeviceGetComputeInstanceId(device_t *d, u32 *out) { ASKED(d); if (d->parent < 0) return INVALID; *out = (u32)d->ci; return OK; }
typedef struct { u32 sms, copy, decoders, encoders, jpeg, ofa, gi_slices, ci_slices; unsigned long long mib; } attributes_t;
int nvmlDeviceGetAttributes_v2(device_t *d, attributes_t *out) {
    ASKED(d);
    if (d->parent < 0) return UNSUPPORTED;
    *out = (attributes_t){d->ci_slices * 16, 1, 0, 0, 0, 0, d->gi_slices, d->ci_slices, d->total >> 20};
    return OK;
}

#ifndef OLD_DRIVER
typedef struct gpm { u64 at; double sums[METRICS]; } gpm_t;
typedef struct { u32 version, supported; } support_t;
typedef struct { u32 id; int code; double value; const char *a, *b, *c; } metric_t;
typedef struct { u32 version, count; gpm_t *one, *two; metric_t metrics[]; } metrics_t;
int nvmlGpmQueryDeviceSupport(device_t *d, support_t *out) { ASKED(d); out->supported = (u32)d->gpm; return OK; }
int nvmlGpmSampleAlloc(gpm_t **out) { *out = calloc(1, sizeof **out); return OK; }
int nvmlGpmSampleFree(gpm_t *s) { free(s); return OK; }
static int gpm_fill(const device_t *d, gpm_t *s) {
    if (!d->gpm) return UNSUPPORTED;
    s->at = fake_now();
    for (int m = 1; m < METRICS; m++) s->sums[m] = integral(d, m, 0, s->at);
    return OK;
}
int nvmlGpmSampleGet(device_t *d, gpm_t *s) { ASKED(d); if (d->mig_on) return UNSUPPORTED; return gpm_fill(d, s); }
int nvmlGpmMigSampleGet(device_t *d, u32 gi, gpm_t *s) {
    ASKED(d);
    for (u32 i = GPUS; i < DEVICES; i++)
        if (devices[i].used && devices[i].parent == (int)(d - devices) && devices[i].gi == (int)gi) return gpm_fill(&devices[i], s);
    return NOT_FOUND;
}
int nvmlGpmMetricsGet(metrics_t *g) {
    if (!g->one || !g->two || g->two->at <= g->one->at) return INVALID;
    for (u32 i = 0; i < g->count; i++) {
        metric_t *m = &g->metrics[i];
        m->code = m->id == 1 || m->id == 2 || m->id == 5 ? OK : UNSUPPORTED;
        if (!m->code) m->value = 100.0 * (g->two->sums[m->id] - g->one->sums[m->id]) / (double)(g->two->at - g->one->at);
    }
    return OK;
}
#endif
