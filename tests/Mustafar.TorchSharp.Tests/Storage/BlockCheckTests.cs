using Mustafar.Native;
using static TorchSharp.torch;

namespace Mustafar.Tests.Storage;

/// <summary>Bitmaps that compression makes are valid, and any that has one channel more or fewer, or at a place of another unit, is not.</summary>
[TestFixture]
internal sealed unsafe class BlockCheckTests
{
    private const int Blocks = 3;

    private static IEnumerable<object[]> Formats() =>
        from pattern in new[] { SparsityPattern.Unstructured, SparsityPattern.BalancedKeys, SparsityPattern.BalancedValues }
        from headDim in pattern == SparsityPattern.Unstructured ? new[] { 64, 80, 128, 256 } : [64, 128, 256]
        from ofSixteen in new[] { 5, 6, 8 }
        select new object[] { pattern, headDim, ofSixteen };

    [TestCaseSource(nameof(Formats))]
    public void A_bitmap_is_valid_as_it_was_made_and_with_no_other_bit(SparsityPattern pattern, int headDim, int ofSixteen)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using BitmapTensor tensor = BitmapTensor.Compress(randn(1, 1, 32 * Blocks, headDim), headDim / 16 * ofSixteen, pattern);
        NativeBlocks native = tensor.Native;
        long blockBytes;
        NativeCall.Check(NativeMethods.BlockBytes(&native.Format, &blockBytes));
        int rowBytes = (headDim + 31) / 32 * 4;
        Random random = new(1);
        for (int i = 0; i < Blocks; i++)
        {
            byte[] block = new Span<byte>((byte*)native.Slabs[0] + (i * blockBytes), (int)blockBytes).ToArray();
            Assert.That(BlockCheck.IsValid(block, native.Format), Is.True);
            for (int bit = 0; bit < 32 * rowBytes * 8; bit++)
            {
                Flip(block, bit);
                Assert.That(BlockCheck.IsValid(block, native.Format), Is.False, $"bit {bit}");
                Flip(block, bit);
            }

            // A channel moved to another unit, or row, of the same block.
            for (int k = 0; k < 200; k++)
            {
                (int from, int to) = (Bit(block, isSet: true), Bit(block, isSet: false));
                if (Unit(pattern, headDim, from, rowBytes) != Unit(pattern, headDim, to, rowBytes))
                {
                    Flip(block, from);
                    Flip(block, to);
                    Assert.That(BlockCheck.IsValid(block, native.Format), Is.False, $"bit {from} to {to}");
                    Flip(block, from);
                    Flip(block, to);
                }
            }
        }

        int Bit(byte[] block, bool isSet)
        {
            int bit;
            do
            {
                bit = random.Next(32 * rowBytes * 8);
            }
            while ((block[bit / 8] >> (bit % 8) & 1) == 1 != isSet);
            return bit;
        }
    }

    /// <summary>Three of a group of four, though the unit has as many as it should.</summary>
    [TestCase(SparsityPattern.BalancedKeys)]
    [TestCase(SparsityPattern.BalancedValues)]
    public void More_than_two_of_a_group_are_refused(SparsityPattern pattern)
    {
        NativeFormat format = new() { HeadDim = 64, Pattern = (int)pattern, Keep = 32, Layout = (int)Layout.Fixed };
        byte[] block = new byte[32 * 8 + (32 * 32 * 4)];
        // 2:4: of each group elements 0 and 1.
        for (int token = 0; token < 32; token++)
        {
            for (int channel = 0; channel < 64; channel++)
            {
                int element = pattern == SparsityPattern.BalancedKeys ? channel / 16 : token % 4;
                if (element < 2)
                {
                    Flip(block, (token * 64) + channel);
                }
            }
        }

        Assert.That(BlockCheck.IsValid(block, format), Is.True);
        // Of group 1 of the first unit one fewer, of group 0 one more.
        (int group0, int group1) = pattern == SparsityPattern.BalancedKeys ? (2 * 16, 4) : (2 * 64, 1);
        Flip(block, group0);
        Flip(block, group1);
        Assert.That(BlockCheck.IsValid(block, format), Is.False);
    }

    /// <summary>Of 8 bits, -128 is no number; of 4 bits, a negative zero; scales are neither negative nor infinite.</summary>
    [Test]
    public void Integers_are_valid_as_they_were_made_and_others_are_refused(
        [Values(8, 4)] int bits, [Values(SparsityPattern.Unstructured, SparsityPattern.All)] SparsityPattern pattern)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        int keep = pattern == SparsityPattern.All ? 80 : 40;
        using BitmapTensor tensor = BitmapTensor.Compress(randn(1, 1, 32, 80), keep, pattern, bits);
        NativeBlocks native = tensor.Native;
        byte[] made = new Span<byte>(native.Slabs[0], (int)LayerFormat.BlockBytes(native.Format)).ToArray();
        Assert.That(BlockCheck.IsValid(made, native.Format), Is.True);
        int values = made.Length - 64 - (32 * keep * bits / 8);
        for (int i = values; i < made.Length - 64; i++)
        {
            Refused(i, bits == 8 ? (byte)0x80 : (byte)((made[i] & 0xF0) | 0x08));
            Refused(i, bits == 8 ? (byte)0x80 : (byte)(0x80 | (made[i] & 0x0F)));
        }

        for (int i = made.Length - 63; i < made.Length; i += 2)
        {
            Refused(i, (byte)(made[i] | 0x80));
            Refused(i, 0x7C, low: 0);
        }

        void Refused(int place, byte value, byte? low = null)
        {
            byte[] block = [.. made];
            block[place] = value;
            if (low is byte other)
            {
                block[place - 1] = other;
            }

            Assert.That(BlockCheck.IsValid(block, native.Format), Is.False, $"{value:x2} at {place}");
        }
    }

    [TestCase(1f, true)]
    [TestCase(1 / 1024f, true)]
    [TestCase(1024f, true)]
    [TestCase(0f, false)]
    [TestCase(-1f, false)]
    [TestCase(1025f, false)]
    [TestCase(0.1f, false)] // Float16 doesn't have it
    [TestCase(float.NaN, false)]
    [TestCase(float.PositiveInfinity, false)]
    public void Channel_scales_are_as_the_rule_makes_them(float scale, bool valid) =>
        Assert.That(BlockCheck.AreChannelScales([1, scale, 2]), Is.EqualTo(valid));

    private static int Unit(SparsityPattern pattern, int headDim, int bit, int rowBytes)
    {
        (int token, int channel) = Math.DivRem(bit, rowBytes * 8);
        int unit = pattern switch
        {
            SparsityPattern.BalancedKeys => (channel % (headDim / 4) / 16 * 4) + (channel % 4),
            SparsityPattern.BalancedValues => channel / 4,
            _ => 0,
        };
        return ((pattern == SparsityPattern.BalancedValues ? token / 4 : token) * 64) + unit + (channel >= headDim ? 1 << 20 : 0);
    }

    private static void Flip(byte[] block, int bit) => block[bit / 8] ^= (byte)(1 << (bit % 8));
}
