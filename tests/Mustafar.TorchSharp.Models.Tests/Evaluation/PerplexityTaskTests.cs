using System.Text.Json.Nodes;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using Mustafar.Tests.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Evaluation;

[TestFixture]
public sealed class PerplexityTaskTests
{
    private static readonly CacheSetting s_pruned = new("pruned", new MustafarOptions { KeySparsity = 0.5, ValueSparsity = 0.5 });

    private static string Text { get; } =
        string.Concat(Enumerable.Range(0, 200).Select(i => string.Create(System.Globalization.CultureInfo.InvariantCulture, $"row {i * 7919 % 1000}\n")));

    [Test]
    public void EvictionTakesEffectPastItsCapacity()
    {
        using TemporaryDirectory directory = new TemporaryDirectory().WithTinyCheckpoint();
        using LanguageModel language = LanguageModel.Load(directory.Path);
        MustafarOptions options = s_pruned.Options! with { GroupSize = 32 };
        TaskResult all = Measure(options), most = Measure(options with { Eviction = TokenEviction.SnapKv(200) });
        TaskResult few = Measure(options with { Eviction = TokenEviction.SnapKv(64, 16) });
        using (Assert.EnterMultipleScope())
        {
            Assert.That(most.Metrics["mean_nll"], Is.EqualTo(all.Metrics["mean_nll"]).Within(1e-9));
            Assert.That(few.Metrics["kl_mean"], Is.GreaterThan(1.01 * all.Metrics["kl_mean"]));
            Assert.That(few.Metrics["bytes"], Is.LessThan(0.8 * all.Metrics["bytes"]));
        }

        TaskResult Measure(MustafarOptions options)
        {
            PerplexityTask task = new(language, Text, 200, 80, windows: 1, batch: 1);
            return task.Summarize([task.MeasurePart(new CacheSetting("measured", options), 0, new Progress(), default)]);
        }
    }

    // Tokens of a step see each other as they come, so that only what was pruned before makes a difference.
    [Test]
    public void SeveralTokensInAStepMeasureNearlyTheSame([Values(2, 7, 8, 500)] int step)
    {
        using TemporaryDirectory directory = new TemporaryDirectory().WithTinyCheckpoint();
        using LanguageModel language = LanguageModel.Load(directory.Path);
        TaskResult one = Measure(CacheSetting.Dense, 1), several = Measure(CacheSetting.Dense, step);
        TaskResult pruned = Measure(s_pruned, 1), prunedInSteps = Measure(s_pruned, step);
        using (Assert.EnterMultipleScope())
        {
            Assert.That((int)several.Details!["predicted_tokens"]!, Is.EqualTo((int)one.Details!["predicted_tokens"]!));
            Assert.That(several.Metrics["mean_nll"], Is.EqualTo(one.Metrics["mean_nll"]).Within(1e-5));
            Assert.That(several.Metrics["kl_mean"], Is.LessThan(1e-7));
            Assert.That(prunedInSteps.Metrics["bytes"], Is.EqualTo(pruned.Metrics["bytes"]));
            if (step <= 8)
            {
                Assert.That(prunedInSteps.Metrics["kl_mean"], Is.EqualTo(pruned.Metrics["kl_mean"]).Within(10).Percent);
            }
        }

        TaskResult Measure(CacheSetting setting, int step)
        {
            PerplexityTask task = new(language, Text, 200, 40, windows: 2, batch: 2, step);
            return task.Summarize([task.MeasurePart(setting, 0, new Progress(), default)]);
        }
    }

    // Against one forward pass over the whole window, and for the pruned cache a dense one with pruned keys and values.
    [TestCase(false)]
    [TestCase(true)]
    public void MeasuresWhatAPlainComputationGives(bool pruned)
    {
        using TemporaryDirectory directory = new TemporaryDirectory().WithTinyCheckpoint();
        using LanguageModel language = LanguageModel.Load(directory.Path);
        const int context = 200, prefill = 40, windows = 3;
        PerplexityTask task = new(language, Text, context, prefill, windows, batch: 2);
        CacheSetting setting = pruned ? s_pruned : CacheSetting.Dense;
        Assert.That(task.Parts, Is.EqualTo(2));
        Progress progress = new();
        TaskResult result = task.Summarize([.. Enumerable.Range(0, 2).Select(part => task.MeasurePart(setting, part, progress, default))]);

        List<double> nll = [], kl = [];
        int same = 0;
        List<int> ids = language.Tokenizer.Encode(Text);
        for (int w = 0; w < windows; w++)
        {
            int[] window = [.. ids.GetRange(w * context, context)];
            double[][] dense = LogProbabilities(language.Model, window, prefill, pruning: null);
            double[][] actual = LogProbabilities(language.Model, window, prefill, pruned ? s_pruned.Options : null);
            for (int i = prefill; i < context; i++)
            {
                (double[] p, double[] q) = (dense[i - 1], actual[i - 1]);
                nll.Add(-q[window[i]]);
                if (i > prefill)
                {
                    kl.Add(p.Zip(q, (logP, logQ) => Math.Exp(logP) * (logP - logQ)).Sum());
                    same += Array.IndexOf(p, p.Max()) == Array.IndexOf(q, q.Max()) ? 1 : 0;
                }
            }
        }

        kl.Sort();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Metrics["perplexity"], Is.EqualTo(Math.Exp(nll.Average())).Within(1e-4).Percent);
            Assert.That(result.Metrics["kl_mean"], Is.EqualTo(kl.Average()).Within(1e-6));
            Assert.That(result.Metrics["kl_p99"], Is.EqualTo(kl[(int)Math.Ceiling(0.99 * kl.Count) - 1]).Within(1e-5));
            Assert.That(result.Metrics["same_likeliest"], Is.EqualTo((double)same / kl.Count).Within(2.0 / kl.Count));
            Assert.That(kl.Average(), pruned ? Is.GreaterThan(1e-5) : Is.LessThan(1e-8));
            Assert.That(result.Metrics["bytes_ratio"], Is.EqualTo(BytesRatio(language.Model, setting, ids[..(context - 1)], prefill)).Within(1e-9));
            Assert.That(progress.Last, Is.EqualTo(1));
            Assert.That((int)result.Details!["predicted_tokens"]!, Is.EqualTo(windows * (context - prefill)));
        }
    }

    [Test]
    public void ATextShorterThanAWindowIsRefused()
    {
        using TemporaryDirectory directory = new TemporaryDirectory().WithTinyCheckpoint();
        using LanguageModel language = LanguageModel.Load(directory.Path);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(
                () => new PerplexityTask(language, "short", 200, 40),
                Throws.ArgumentException.With.Message.Contains("at least 200 tokens").And.Property("ParamName").EqualTo("text"));
            Assert.That(() => new PerplexityTask(language, Text, 200, 200), Throws.InstanceOf<ArgumentOutOfRangeException>());
            Assert.That(() => new PerplexityTask(language, string.Concat(Text, Text), 2049, 40), Throws.ArgumentException.With.Message.Contains("2048"));
        }
    }

    [Test]
    public void APercentileIsTheSmallestThatTheShareDoesNotExceed()
    {
        double[] numbers = [.. Enumerable.Range(1, 200).Select(i => (double)(i * 37 % 201))];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(PerplexityTask.Percentile(numbers, 0.99), Is.EqualTo(198));
            Assert.That(PerplexityTask.Percentile([5], 0.99), Is.EqualTo(5));
            Assert.That(PerplexityTask.Percentile([1, 2], 0.5), Is.EqualTo(1));
        }
    }

    [Test]
    public void NumbersThatAreNotFiniteAreKept()
    {
        using TemporaryDirectory directory = new TemporaryDirectory().WithTinyCheckpoint();
        using LanguageModel language = LanguageModel.Load(directory.Path);
        using (no_grad())
        {
            language.Model.parameters().Last(parameter => parameter.dim() == 1).fill_(float.NaN);
        }

        PerplexityTask task = new(language, Text, 100, 40, 1);
        JsonNode part = JsonNode.Parse(task.MeasurePart(s_pruned, 0, new Progress(), default).ToJsonString())!;
        Assert.That(task.Summarize([part]).Metrics["perplexity"], Is.NaN);
    }

    // The last token of a window is predicted, and not cached.
    private static double BytesRatio(LlamaForCausalLM model, CacheSetting setting, List<int> ids, int prefill)
    {
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = setting.NewCache(model, 1);
        foreach (int[] step in (int[][])[[.. ids[..prefill]], .. ids[prefill..].Select(id => new[] { id })])
        {
            model.Hidden(TokenIds.ToTensor(step, CPU), cache);
        }

        long elements = 2L * ids.Count * model.Config.NumLayers * model.Config.NumKvHeads * model.Config.HeadDim;
        return cache.Cache.Usage.UsedBytes / (2.0 * elements);
    }

    // Of the next token after each position: the prompt in one pass, the rest one by one over a cache whose tokens are pruned.
    private static double[][] LogProbabilities(LlamaForCausalLM model, int[] window, int prefill, MustafarOptions? pruning)
    {
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = pruning is null
            ? ModelCache.Dense(model)
            : LayerCaches.Of(Enumerable.Range(0, model.Config.NumLayers).Select(_ =>
                new PrunedDenseCache(model.Config.KeyValueShape, pruning)));
        Tensor ids = tensor(window.Select(id => (long)id).ToArray()).reshape(1, -1);
        List<Tensor> logits = [];
        int first = pruning is null ? window.Length : prefill;
        logits.Add(model.forward(ids.narrow(1, 0, first), cache));
        for (int i = first; i < window.Length; i++)
        {
            logits.Add(model.forward(ids.narrow(1, i, 1), cache));
        }

        Tensor all = cat(logits, 1)[0].to(ScalarType.Float64).log_softmax(-1);
        return [.. all.data<double>().ToArray().Chunk(model.Config.VocabSize)];
    }

    private sealed class Progress : IProgress<double>
    {
        public double Last { get; private set; }

        public void Report(double value) => Last = value;
    }
}
