using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

[TestFixture]
internal sealed class KeyValueShapeTests
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 64 };

    [TestCase(0)]
    [TestCase(-8)]
    public void A_size_that_is_not_positive_is_named(int size) => Assert.Multiple(() =>
    {
        Assert.That(
            () => s_shape with { NumKvHeads = size },
            Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("NumKvHeads").And.Message.Contains($"{size}"));
        Assert.That(
            () => s_shape with { HeadDim = size },
            Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("HeadDim").And.Message.Contains($"{size}"));
    });

    [Test]
    public void Every_cache_has_the_shape_that_it_was_made_with()
    {
        using MustafarCache compressed = new(1, s_shape, ScalarType.Float32);
        using DenseCache dense = new(1, s_shape, ScalarType.Float32);
        using MustafarModelCache compressedModel = new(3, s_shape, ScalarType.Float32);
        using DenseModelCache denseModel = new(3, s_shape, ScalarType.Float32);
        using MustafarCache fork = compressed.Fork([0, 0]);
        using DenseCache denseFork = dense.Fork([0, 0]);
        KeyValueShape[] shapes =
        [
            compressed.KeyValueShape, dense.KeyValueShape, compressedModel.KeyValueShape, denseModel.KeyValueShape, fork.KeyValueShape,
            denseFork.KeyValueShape,
        ];

        Assert.That(shapes, Is.All.EqualTo(s_shape));
        Assert.That((compressed.NumKvHeads, compressed.HeadDim, denseModel.NumKvHeads, denseModel.HeadDim), Is.EqualTo((2, 64, 2, 64)));
    }

    [Test]
    public void A_layer_says_which_caches_it_takes()
    {
        MustafarAttentionOptions layer = new() { HiddenSize = 256, NumHeads = 4, NumKvHeads = 2, HeadDim = 64 };

        Assert.That(layer.KeyValueShape, Is.EqualTo(s_shape));
        Assert.That(() => (layer with { NumKvHeads = 0 }).KeyValueShape, Throws.TypeOf<ArgumentOutOfRangeException>());
    }
}
