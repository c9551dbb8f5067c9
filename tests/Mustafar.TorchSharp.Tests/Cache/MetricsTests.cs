using System.Diagnostics.Metrics;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>What meters show of caches.</summary>
[NonParallelizable]
internal sealed class MetricsTests
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 64 };

    [Test]
    public void Bytes_are_those_of_all_caches_that_are_not_disposed()
    {
        using var scope = NewDisposeScope();
        (long reserved, long used) = Measured("compressed");
        (long denseReserved, long denseUsed) = Measured("dense");
        KeyValueCacheMemory memory;
        using (MustafarCache cache = new(1, s_shape, ScalarType.Float32))
        using (MustafarModelCache model = new(2, s_shape, ScalarType.Float32))
        using (DenseCache dense = new(1, s_shape, ScalarType.Float32))
        using (DenseModelCache denseModel = new(2, s_shape, ScalarType.Float32))
        {
            Tensor tokens = randn(1, 2, 200, 64);
            cache.Append(tokens, tokens);
            _ = dense.Forward(tokens, tokens, tokens);
            memory = cache.Memory + model.Memory;
            Assert.That(Measured("compressed"), Is.EqualTo((reserved + memory.TotalBytes, used + memory.UsedBytes)));
            memory = dense.Memory + denseModel.Memory;
            Assert.That(Measured("dense"), Is.EqualTo((denseReserved + memory.TotalBytes, denseUsed + memory.UsedBytes)));
        }

        Assert.That(Measured("compressed"), Is.EqualTo((reserved, used)));
        Assert.That(Measured("dense"), Is.EqualTo((denseReserved, denseUsed)));
    }

    [Test]
    public void Compressed_tokens_are_counted_once_for_all_layers_and_not_if_a_step_is_given_up()
    {
        using var scope = NewDisposeScope();
        long sum = 0;
        using MeterListener listener = Listener();
        listener.SetMeasurementEventCallback<long>((instrument, value, _, _) => sum += instrument.IsObservable ? 0 : value);
        listener.Start();
        using MustafarModelCache cache = new(3, s_shape, ScalarType.Float32);
        int[] sequences = [cache.AddSequence(), cache.AddSequence()];
        foreach (bool commit in new[] { true, false, true })
        {
            using CacheStep step = cache.BeginStep(sequences, 100);
            Tensor tokens = randn(2, 2, 100, 64);
            for (int layer = 0; layer < 3; layer++)
            {
                _ = step.Attend(layer, tokens, tokens, tokens);
            }

            if (commit)
            {
                step.Commit();
            }
        }

        Assert.That(sum, Is.EqualTo(sequences.Sum(cache.CompressedLengthOf)).And.EqualTo(2 * 128));
    }

    private static (long Reserved, long Used) Measured(string kind)
    {
        // Caches that other tests dropped are measured until they are collected.
        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
        Dictionary<string, long> values = [];
        using MeterListener listener = Listener();
        listener.SetMeasurementEventCallback<long>((instrument, value, tags, _) =>
        {
            if (tags.Contains(new KeyValuePair<string, object?>("cache.kind", kind)))
            {
                values.Add(instrument.Name, value);
            }
        });
        listener.Start();
        listener.RecordObservableInstruments();
        return (values.GetValueOrDefault("mustafar.cache.reserved"), values.GetValueOrDefault("mustafar.cache.used"));
    }

    private static MeterListener Listener() => new()
    {
        InstrumentPublished = (instrument, self) =>
        {
            if (instrument.Meter.Name == MustafarMetrics.MeterName)
            {
                self.EnableMeasurementEvents(instrument);
            }
        },
    };
}
