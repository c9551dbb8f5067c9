using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Modules;

[TestFixture]
public sealed class RotaryEmbeddingTests
{
    private static readonly RotaryOptions s_options = new() { HeadDim = 8, Theta = 100 };

    [Test]
    public void SeveralThreadsShareOneEmbedding()
    {
        // Every thread outgrows the table at its own time, so that tables change while others are read.
        const int threads = 8;
        RotaryOptions options = new() { HeadDim = 64 };
        using RotaryEmbedding shared = new(options);
        using Barrier start = new(threads);
        string?[] wrong = new string?[threads];
        Thread[] running = [.. Enumerable.Range(0, threads).Select(t => new Thread(() => wrong[t] = Run(t)))];
        Array.ForEach(running, thread => thread.Start());
        Array.ForEach(running, thread => thread.Join());
        Assert.That(wrong, Is.All.Null);

        string? Run(int t)
        {
            try
            {
                using DisposeScope scope = NewDisposeScope();
                using RotaryEmbedding own = new(options);
                Tensor query = ones(1, 3, 2, 64);
                start.SignalAndWait();
                for (int i = 0; i < 24; i++)
                {
                    int[] positions = [(i * 701) + (t * 97)];
                    (Tensor actual, _) = shared.Apply(query, query, positions);
                    (Tensor expected, _) = own.Apply(query, query, positions);
                    if (!actual.eq(expected).all().item<bool>())
                    {
                        return $"thread {t}, position {positions[0]}: other values than alone";
                    }
                }

                return null;
            }
            catch (Exception error)
            {
                return $"thread {t}: {error}";
            }
        }
    }

    [Test]
    public void DisposingWaitsForCallsOfOtherThreads()
    {
        for (int round = 0; round < 10; round++)
        {
            using RotaryEmbedding shared = new(new RotaryOptions { HeadDim = 64 });
            string?[] wrong = new string?[3];
            Thread[] running = [.. Enumerable.Range(0, wrong.Length).Select(t => new Thread(() => wrong[t] = Run(shared)))];
            Array.ForEach(running, thread => thread.Start());
            Thread.Sleep(5);
            shared.Dispose();
            Array.ForEach(running, thread => thread.Join());
            Assert.That(wrong, Is.All.Null);
        }

        // Right values until it is disposed, then the exception that says so.
        static string? Run(RotaryEmbedding shared)
        {
            using DisposeScope scope = NewDisposeScope();
            Tensor query = ones(1, 64, 8, 64);
            Tensor? first = null;
            while (true)
            {
                try
                {
                    Tensor turned = shared.Apply(query, query, [100]).Query;
                    first ??= turned;
                    if (!turned.eq(first).all().item<bool>())
                    {
                        return "other values than before";
                    }
                }
                catch (ObjectDisposedException)
                {
                    return null;
                }
                catch (Exception error)
                {
                    return error.ToString();
                }
            }
        }
    }

    [Test]
    public void TurnsPairsOfChannelsByTheirAngle()
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(3);
        using RotaryEmbedding rotary = new(s_options);
        Tensor query = randn(3, 5, 4, 8);
        Tensor key = randn(3, 5, 2, 8);
        int[] starts = [0, 7, 2500];
        (Tensor turnedQuery, Tensor turnedKey) = rotary.Apply(query, key, starts);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(LargestError(turnedQuery, query, starts), Is.LessThan(1e-5));
            Assert.That(LargestError(turnedKey, key, starts), Is.LessThan(1e-5));
        }
    }

    [Test]
    public void EqualStartsGiveWhatDifferentOnesDo()
    {
        using DisposeScope scope = NewDisposeScope();
        using RotaryEmbedding rotary = new(s_options);
        Tensor x = randn(2, 3, 1, 8);
        (Tensor same, _) = rotary.Apply(x, x, [9, 9]);
        (Tensor different, _) = rotary.Apply(x, x, [9, 4]);
        Assert.That(same[0].equal(different[0]).all().item<bool>());
    }

    [Test]
    public void TablesGrowAndSurviveInferenceMode()
    {
        using DisposeScope scope = NewDisposeScope();
        using RotaryEmbedding rotary = new(s_options);
        Tensor x = randn(1, 2, 1, 8);
        int[] far = [5000];
        using (inference_mode())
        {
            rotary.Apply(x, x, [0]);
        }

        Tensor trained = randn(1, 2, 1, 8, requires_grad: true);
        (Tensor query, _) = rotary.Apply(trained, x, far);
        query.sum().backward();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(LargestError(query.detach(), trained.detach(), far), Is.LessThan(1e-5));
            Assert.That(trained.grad, Is.Not.Null);
        }
    }

    [TestCase(ScalarType.Float16, 3e-3)]
    [TestCase(ScalarType.BFloat16, 3e-2)]
    public void LowPrecisionIsNearFloat(ScalarType dtype, double tolerance)
    {
        using DisposeScope scope = NewDisposeScope();
        using RotaryEmbedding rotary = new(s_options);
        Tensor x = rand(1, 4, 2, 8).to(dtype);
        (Tensor query, _) = rotary.Apply(x, x, [100]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(query.dtype, Is.EqualTo(dtype));
            Assert.That(LargestError(query.to(ScalarType.Float32), x.to(ScalarType.Float32), [100]), Is.LessThan(tolerance));
        }
    }

    // Wavelengths by the formula of transformers, written out case by case.
    [TestCase(8.0, 1.0, 4.0, 8192, 500_000.0)]
    [TestCase(32.0, 1.0, 4.0, 8192, 500_000.0)]
    [TestCase(8.0, 1.0, 4.0, 256, 10_000.0)]
    public void Llama3ScalingStretchesLongWavelengths(double factor, double low, double high, int original, double theta)
    {
        RotaryOptions plain = new() { HeadDim = 64, Theta = theta };
        RotaryOptions scaled = plain with
        {
            Scaling = new Llama3RotaryScaling
            {
                Factor = factor, LowFrequencyFactor = low, HighFrequencyFactor = high, OriginalMaxPositions = original,
            },
        };
        double[] expected = [.. plain.AnglesPerPosition().Select(angle =>
        {
            double wavelength = 2 * Math.PI / angle;
            if (wavelength < original / high)
            {
                return angle;
            }

            double smooth = ((original / wavelength) - low) / (high - low);
            return wavelength > original / low ? angle / factor : ((1 - smooth) * angle / factor) + (smooth * angle);
        })];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(scaled.AnglesPerPosition(), Is.EqualTo(expected).Within(1e-15));
            Assert.That(scaled.AnglesPerPosition()[0], Is.EqualTo(1), "the shortest wavelength stays");
            Assert.That(scaled.AnglesPerPosition()[^1], Is.EqualTo(plain.AnglesPerPosition()[^1] / factor), "the longest is stretched");
        }
    }

    [Test]
    public void RefusesBadInput()
    {
        using DisposeScope scope = NewDisposeScope();
        RotaryEmbedding rotary = new(s_options);
        Tensor x = ones(2, 3, 1, 8);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => rotary.Apply(x, x.to(ScalarType.Float16), [0, 0]), Throws.ArgumentException.With.Message.Contains("Float16"));
            Assert.That(() => rotary.Apply(x.narrow(3, 0, 4), x, [0, 0]), Throws.ArgumentException.With.Message.Contains("[2, 3, 1, 4]"));
            Assert.That(() => rotary.Apply(x, x.narrow(1, 0, 2), [0, 0]), Throws.ArgumentException.With.Message.Contains("[2, 2, 1, 8]"));
            Assert.That(() => rotary.Apply(x, x, [0]), Throws.ArgumentException.With.Message.Contains("2 sequences"));
            Assert.That(() => rotary.Apply(x, x, [0, -1]), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new RotaryOptions { HeadDim = 7 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new Llama3RotaryScaling { Factor = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new Llama3RotaryScaling { OriginalMaxPositions = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(
                () => new RotaryEmbedding(s_options with { Scaling = new Llama3RotaryScaling { HighFrequencyFactor = 1 } }),
                Throws.ArgumentException.With.Message.Contains("more than 1"));
            Assert.That(() => new RotaryOptions { Theta = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
        }

        rotary.Dispose();
        Assert.That(() => rotary.Apply(x, x, [0, 0]), Throws.TypeOf<ObjectDisposedException>());
    }

    // Channel i and i + head_dim / 2 as a complex number, times e^(i · angle · position).
    private static double LargestError(Tensor actual, Tensor source, int[] starts)
    {
        double largest = 0;
        long[] shape = source.shape;
        for (int b = 0; b < shape[0]; b++)
        {
            for (int t = 0; t < shape[1]; t++)
            {
                for (int h = 0; h < shape[2]; h++)
                {
                    for (int c = 0; c < 4; c++)
                    {
                        double angle = (starts[b] + t) * Math.Pow(100, -c / 4.0);
                        double x = source[b, t, h, c].item<float>();
                        double y = source[b, t, h, c + 4].item<float>();
                        double left = (x * Math.Cos(angle)) - (y * Math.Sin(angle));
                        double right = (y * Math.Cos(angle)) + (x * Math.Sin(angle));
                        largest = Math.Max(largest, Math.Abs(actual[b, t, h, c].item<float>() - left));
                        largest = Math.Max(largest, Math.Abs(actual[b, t, h, c + 4].item<float>() - right));
                    }
                }
            }
        }

        return largest;
    }
}
