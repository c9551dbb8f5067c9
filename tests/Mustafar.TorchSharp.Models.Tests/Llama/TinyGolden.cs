using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>Small models of random weights, and what Hugging Face transformers gave for 160 tokens in float32.</summary>
internal static class TinyGolden
{
    private const int Tokens = 160;
    private const int LastLogits = 8;

    public static string Directory(string name) => Path.Combine(Golden.Directory, "tiny", name);

    public static string File(string name) => Path.Combine(Directory(name), "golden.safetensors");

    /// <summary>Asserts that a model's logits are the reference's.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">Its empty caches.</param>
    /// <param name="name">Which one it is.</param>
    /// <param name="cuts">Tokens of each step; one each if empty.</param>
    public static void AssertLogits(LlamaForCausalLM model, ModelCache cache, string name, int[] cuts)
    {
        (double nll, double logits) = Errors(model, cache, name, cuts);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(nll, Is.LessThan(1e-3));
            Assert.That(logits, Is.LessThan(2e-3));
        }
    }

    /// <summary>The largest differences to the reference, of negative log likelihoods and of the last logits.</summary>
    public static (double Nll, double Logits) Errors(LlamaForCausalLM model, ModelCache cache, string name, int[] cuts)
    {
        using DisposeScope scope = NewDisposeScope();
        using IDisposable mode = inference_mode();
        Tensor ids = tensor(Golden.Longs(File(name), "ids"), device: model.parameters().First().device).reshape(1, -1);
        List<Tensor> parts = [];
        int start = 0;
        foreach (int count in cuts.Length > 0 ? cuts : Enumerable.Repeat(1, Tokens))
        {
            parts.Add(model.forward(ids.narrow(1, start, count), cache)[0].cpu());
            start += count;
        }

        Tensor logits = cat(parts, 0);
        Tensor nll = TeacherForcing.OfToken(logits.narrow(0, 0, Tokens - 1), ids[0].narrow(0, 1, Tokens - 1).cpu());
        double[] last = [.. logits.narrow(0, Tokens - LastLogits, LastLogits).reshape(-1).data<float>().Select(value => (double)value)];
        Assert.That(start, Is.EqualTo(Tokens));
        return (
            Golden.LargestError(nll.data<double>().ToArray(), Golden.Floats(File(name), "nll")),
            Golden.LargestError(last, Golden.Floats(File(name), "logits")));
    }
}
