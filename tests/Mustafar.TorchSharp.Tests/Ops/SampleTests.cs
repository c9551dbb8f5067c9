using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class SampleTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    private static readonly SamplingParameters[] Varied =
    [
        new() { Seed = 3 }, new() { Temperature = 0 }, new() { Temperature = 0.7, TopK = 50 }, new() { TopP = 0.9, Seed = 1UL << 63 },
        new() { TopP = 0.5, TopK = 1000 }, new() { MinP = 0.05 }, new() { TopK = 1 }, new() { TopP = 0 }, new() { TopK = int.MaxValue },
        new() { Temperature = 1e-30, TopP = 0.999 }, new() { Temperature = 30, TopK = 7, TopP = 0.99, MinP = 0.5 }, new() { MinP = 1 },
        new() { RepetitionPenalty = 1.3 }, new() { FrequencyPenalty = 0.5, TopK = 20 }, new() { PresencePenalty = 2, TopP = 0.8 },
        new() { RepetitionPenalty = 0.7, FrequencyPenalty = -0.2, PresencePenalty = 1 }, new() { Temperature = 0, FrequencyPenalty = 100 },
    ];

    private static readonly (string Name, Func<Tensor, Tensor> Shape)[] Kinds =
    [
        ("normal", x => 3 * x), ("ties", x => (2 * x).round()), ("equal", x => 0 * x), ("signed zeros", x => where(x > 0, tensor(0f), tensor(-0f))),
        ("wide", x => 1e4 * x), ("close", x => 20 + (1e-3 * x)), ("peaked", x => where(x == x.amax([-1], keepdim: true), tensor(40f), x)),
    ];

    [Test]
    public void Tokens_are_those_of_the_definition([ValueSource(nameof(DTypes))] ScalarType dtype, [Values(1, 2, 31, 257, 5000)] int vocabSize, [Values] bool penalties)
    {
        SamplingParameters[] parameters = [.. Varied.Where(p => penalties || p.PresencePenalty + p.FrequencyPenalty + (p.RepetitionPenalty - 1) == 0)];
        Check(dtype, vocabSize, parameters, penalties, draws: 4);
    }

    /// <summary>On CUDA several thread blocks share a sequence's logits here.</summary>
    [TestCase(ScalarType.Float32, 32001)]
    [TestCase(ScalarType.BFloat16, 128256)]
    public void So_are_those_of_large_vocabularies(ScalarType dtype, int vocabSize) =>
        Check(dtype, vocabSize, [.. Varied.Where((_, i) => i is 0 or 2 or 4 or 14)], penalties: true, draws: 1);

    [Test]
    public void So_are_those_of_many_sequences() =>
        Check(
            ScalarType.BFloat16, 300, [.. Enumerable.Range(0, 512).Select(b => Varied[b % Varied.Length] with { Seed = (ulong)b })],
            penalties: true, draws: 1);

    [Test]
    public void Draws_follow_the_probabilities()
    {
        using var scope = NewDisposeScope();
        double[] probabilities = [0.05, 0.4, 0.1, 0.3, 0.1, 0.05];
        const int Draws = 20_000;
        Tensor logits = tensor([.. probabilities.Select(p => (float)Math.Log(p))], device: device).unsqueeze(0);
        using SamplingState state = new(1, 6, new Device(device));
        state.Restart(0, new SamplingParameters { Seed = 42 });
        int[] counts = new int[6];
        Tensor tokens = empty(1, dtype: ScalarType.Int64, device: device);
        for (int i = 0; i < Draws; i++)
        {
            counts[MustafarOps.Sample(logits, state, tokens: tokens).item<long>()]++;
        }

        // 5 degrees of freedom: exceeded by one seed of 1000.
        Assert.That(counts.Select((n, t) => Math.Pow(n - (Draws * probabilities[t]), 2) / (Draws * probabilities[t])).Sum(), Is.LessThan(20.5));
    }

    [Test]
    public void Special_values_have_results([Values(0, 1)] double temperature)
    {
        using var scope = NewDisposeScope();
        Tensor logits = zeros(8, 100, device: device);
        logits[0, 50] = tensor(float.NaN);
        logits[1] = tensor(float.NegativeInfinity);
        logits[2] = tensor(float.NegativeInfinity);
        logits[2, 99] = tensor(1f);
        logits[3, 3] = tensor(float.PositiveInfinity);
        logits[4, 70] = tensor(float.NaN);
        logits[5, 70] = tensor(float.PositiveInfinity);
        logits[7, TensorIndex.Slice(0, null, 2)] = tensor(float.NegativeInfinity);
        Tensor mask = ones(8, 100, dtype: ScalarType.Bool);
        mask[4, 70] = mask[5, 70] = tensor(false);
        mask[6] = tensor(false);
        using SamplingState state = new(8, 100, new Device(device));
        for (int b = 0; b < 8; b++)
        {
            state.Restart(b, new SamplingParameters { Temperature = temperature, TopK = 1 });
        }

        Tensor tokens = MustafarOps.Sample(logits, state, MustafarOps.PackTokens(mask).to(device));
        Assert.That(tokens.cpu().data<long>().ToArray(), Is.EqualTo(new long[] { -1, -1, 99, -1, 0, 0, -1, 1 }));
    }

    [Test]
    public void No_sequences_are_fine()
    {
        using var scope = NewDisposeScope();
        using SamplingState state = new(0, 100, new Device(device));
        Assert.That(MustafarOps.Sample(empty(0, 100, device: device), state).shape, Is.EqualTo(new long[] { 0 }));
    }

    [Test]
    public void Rows_start_anew_by_themselves()
    {
        using var scope = NewDisposeScope();
        manual_seed(8);
        Tensor logits = randn(2, 50, device: device);
        SamplingParameters parameters = new() { Seed = 5, PresencePenalty = 1 };
        using SamplingState state = new(2, 50, new Device(device));
        long[][] Draw(int count) => [.. Enumerable.Range(0, count).Select(_ => MustafarOps.Sample(logits, state).cpu().data<long>().ToArray())];
        state.Restart(0, parameters);
        state.Restart(1, parameters);
        long[][] first = Draw(20);
        state.Restart(0, parameters);
        long[][] second = Draw(20);
        state.Restart(1, parameters with { PresencePenalty = 0 }, step: 7);
        state.Restart(0, parameters, chosen: [.. first[..15].Select(tokens => (int)tokens[0])], step: 15);
        long[][] third = Draw(5);
        float[] row = Values.Of(logits[1]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(second.Select(tokens => tokens[0]), Is.EqualTo(first.Select(tokens => tokens[0])));
            Assert.That(second.Select(tokens => tokens[1]), Is.Not.EqualTo(first.Select(tokens => tokens[1])));
            Assert.That(third.Select(tokens => tokens[0]), Is.EqualTo(first[15..].Select(tokens => tokens[0])), "a text goes on");
            Assert.That(third.Select(tokens => tokens[1]), Is.EqualTo(Enumerable.Range(7, 5).Select(step => ReferenceSampling.Token(row, new SamplingParameters { Seed = 5 }, step))));
        }
    }

    // Of Random123's known answers (kat_vectors: philox4x32 10), those whose counter has two words.
    [TestCase(0UL, 0UL, 0xe169c58d_6627e8d5UL)]
    public void The_generator_is_Philox(ulong seed, ulong step, ulong expected) => Assert.That(ReferenceSampling.RandomBits(seed, step), Is.EqualTo(expected));

    [Test]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        using SamplingState state = new(2, 40, new Device(device), penalties: false);
        Tensor logits = randn(2, 40, device: device);
        Assert.Multiple(() =>
        {
            Assert.That(() => MustafarOps.Sample(logits, null!), Throws.ArgumentNullException);
            Assert.That(() => MustafarOps.Sample(logits[.., ..39], state), Throws.ArgumentException.With.Message.Contains("[2, 40]"));
            Assert.That(() => MustafarOps.Sample(logits.to(ScalarType.Float64), state), Throws.ArgumentException.With.Message.Contains("Float64"));
            Assert.That(() => MustafarOps.Sample(logits, state, zeros(3, 2, dtype: ScalarType.Int32, device: device)), Throws.ArgumentException.With.Property("ParamName").EqualTo("allowed"));
            Assert.That(() => MustafarOps.Sample(logits, state, tokens: zeros(2, device: device)), Throws.ArgumentException.With.Property("ParamName").EqualTo("tokens"));
            Assert.That(() => MustafarOps.Sample(logits, state, logProbabilities: zeros(1, device: device)), Throws.ArgumentException.With.Property("ParamName").EqualTo("logProbabilities"));
            Assert.That(() => MustafarOps.PackTokens(zeros(3)), Throws.ArgumentException.With.Message.Contains("Float32"));
            Assert.That(() => state.Restart(2, new SamplingParameters()), Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("row"));
            Assert.That(() => state.Restart(0, new SamplingParameters(), [40]), Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("prompt"));
            Assert.That(() => state.Restart(0, new SamplingParameters(), chosen: [-1]), Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("chosen"));
            Assert.That(() => state.Restart(0, new SamplingParameters { PresencePenalty = 1 }), Throws.ArgumentException.With.Property("ParamName").EqualTo("parameters"));
            Assert.That(() => new SamplingState(1, 0), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingParameters { Temperature = -1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingParameters { Temperature = 1e300 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingParameters { TopK = -1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingParameters { FrequencyPenalty = double.NaN }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingParameters { PresencePenalty = double.PositiveInfinity }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingParameters { TopP = 1.5 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingParameters { MinP = double.NaN }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingParameters { RepetitionPenalty = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
        });
        state.Dispose();
        Assert.That(() => MustafarOps.Sample(logits, state), Throws.TypeOf<ObjectDisposedException>());
    }

    // Draws from logits of each kind; with penalties also from a part of the tokens, after prompts.
    private void Check(ScalarType dtype, int vocabSize, SamplingParameters[] parameters, bool penalties, int draws)
    {
        using var scope = NewDisposeScope();
        manual_seed(vocabSize);
        Random random = new(vocabSize);
        int batch = parameters.Length;
        Tensor normal = randn(batch, vocabSize);
        foreach ((string name, Func<Tensor, Tensor> shape) in Kinds)
        {
            Tensor logits = shape(normal).clamp(-6e4, 6e4).to(dtype).to(device);
            float[][] rows = [.. Enumerable.Range(0, batch).Select(b => Values.Of(logits[b]))];
            bool[][]? allowed = penalties ? [.. rows.Select(row => row.Select(_ => random.Next(4) > 0).ToArray())] : null;
            Tensor? mask = allowed is null ? null : MustafarOps.PackTokens(stack(allowed.Select(row => tensor(row)))).to(device);
            bool[][] prompts = [.. rows.Select(row => row.Select(_ => penalties && random.Next(5) == 0).ToArray())];
            int[][] counts = [.. rows.Select(row => new int[row.Length])];
            using SamplingState state = new(batch, vocabSize, new Device(device), penalties);
            for (int b = 0; b < batch; b++)
            {
                state.Restart(b, parameters[b], [.. Enumerable.Range(0, vocabSize).Where(t => prompts[b][t])], step: (long)b << 31);
            }

            Tensor logs = empty(batch, device: device), exact = ReferenceStep.Exact(logits).log_softmax(-1);
            for (int draw = 0; draw < draws; draw++)
            {
                long[] tokens = [.. MustafarOps.Sample(logits, state, mask, logProbabilities: logs).cpu().data<long>()];
                float[] probabilities = Values.Of(logs);
                for (int b = 0; b < batch; b++)
                {
                    int expected = ReferenceSampling.Token(rows[b], parameters[b], ((long)b << 31) + draw, counts[b], prompts[b], allowed?[b]);
                    Assert.That(tokens[b], Is.EqualTo(expected), $"{name} {dtype} {vocabSize}, draw {draw} with {parameters[b]}");
                    if (expected < 0)
                    {
                        Assert.That(probabilities[b], Is.NaN, "log-probability of no token");
                        continue;
                    }

                    counts[b][expected]++;
                    double log = exact[b, expected].item<double>();
                    Assert.That(probabilities[b], Is.EqualTo(log).Within(1e-5 * (1 + Math.Abs(log))), $"{name} {dtype} {vocabSize}");
                }
            }
        }
    }
}
