// Products with integers by NEON: values and digits of 8 bits, both signed, are multiplied to 16 and added in pairs to 32.
#include <arm_neon.h>

#include "cpu/quads_kernels.h"

namespace mustafar {
namespace {

struct Neon {
    static constexpr int bytes = 16, rows = 4, shift = 7;
    using Digit = int8_t;
    using Values = int8x16_t;
    using Part = int8x16_t;
    using Sum = int32x4_t;

    static constexpr int digits(bool wide) { return wide ? 3 : 2; }
    static constexpr int bias(int bits) { return bits == 8 ? 0 : 8; }

    MUSTAFAR_INLINE static Sum zero() { return vdupq_n_s32(0); }
    MUSTAFAR_INLINE static Values load(const char* values) {
        return vreinterpretq_s8_u8(veorq_u8(bytes_at(values), vdupq_n_u8(0x80)));
    }
    MUSTAFAR_INLINE static Values low(const char* values) {
        return vreinterpretq_s8_u8(vandq_u8(bytes_at(values), vdupq_n_u8(15)));
    }
    MUSTAFAR_INLINE static Values high(const char* values) {
        return vreinterpretq_s8_u8(vshrq_n_u8(bytes_at(values), 4));
    }
    MUSTAFAR_INLINE static Part broadcast(const void* digits) {
        int32_t four;
        std::memcpy(&four, digits, sizeof four);
        return vreinterpretq_s8_s32(vdupq_n_s32(four));
    }
    // Products of the lower and of the upper two of each four channels are added up in 16 bits, at most 2 * 127 * 127.
    MUSTAFAR_INLINE static Sum dot(Sum sum, Values values, Part part) {
        const int16x8_t low = vmull_s8(vget_low_s8(values), vget_low_s8(part)), high = vmull_high_s8(values, part);
        return vpadalq_s16(sum, vpaddq_s16(low, high));
    }
    MUSTAFAR_INLINE static Lanes<bytes>::Ints lanes(Sum sum) { return reinterpret_cast<Lanes<bytes>::Ints>(sum); }
    MUSTAFAR_INLINE static void widen(const uint16_t* halves, int count, float* out) {
        for (int i = 0; i < count; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
    }
    MUSTAFAR_INLINE static void spread(const int8_t* values, const uint8_t* places, int8_t* out) {
        vst1_s8(out, vtbl1_s8(vld1_s8(values), vreinterpret_s8_u8(vld1_u8(places))));
    }

private:
    MUSTAFAR_INLINE static uint8x16_t bytes_at(const char* values) {
        return vld1q_u8(reinterpret_cast<const uint8_t*>(values));
    }
};

}  // namespace

const QuadKernels& neon_quad_kernels() {
    return quad_table<Neon>;
}

}  // namespace mustafar
