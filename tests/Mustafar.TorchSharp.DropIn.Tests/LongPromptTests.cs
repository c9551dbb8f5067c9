using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.DropIn.Models.GenAI;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>Prompts of so many tokens that modules run over some of them at a time and free what is no longer needed.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
public sealed class LongPromptTests(string device) : DefaultDeviceFixture(device)
{
    private const int Tokens = TokenPieces.AtOnce + 70;

    private static readonly MustafarOptions s_everything = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 8, GroupSize = 32 };

    [Test, Pairwise]
    public void LogitsAreTheModelsOwn(
        [Values("genai", "genai-joint", "genai-phi3")] string name, [Values] bool linear, [Values(1, 2)] int batch)
    {
        using Subject subject = Subject.Make(name);
        Tensor ids = Subject.Ids(batch, (Tokens / batch) + 3, seed: 1);
        Tensor own = subject.Run(ids, Tokens / batch);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything, linear);
        // Sums in another order, as with short prompts.
        Compare.Close(subject.Run(ids, Tokens / batch), own, 1e-4, 1e-4, "logits");
    }

    /// <summary>The norms', attention's and the feed-forward module's results are as large as the hidden states, one of which each keeps.</summary>
    [Test]
    public void ALayerFreesWhatItsNextModuleHasRead([Values(1, 60, 61)] int most)
    {
        using Subject subject = Subject.Make("genai");
        LlamaDecoderLayer own = subject.Model.modules().OfType<LlamaDecoderLayer>().First();
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything);
        LlamaDecoderLayer layer = subject.Model.modules().OfType<LlamaDecoderLayer>().First();
        Assert.That(((IReplacedModule)layer).Replacement.Original, Is.SameAs(own));
        List<Tensor> returned = [];
        List<string> valid = [];
        foreach (string name in new[] { "input_layernorm", "self_attn", "post_attention_layernorm", "mlp" })
        {
            IReplacedModule module = (IReplacedModule)Reflected.Get(layer, name)!;
            (module.Replacement as TokenPieces)?.Most = most;
            module.Replacement = new Watched(module.Replacement, result =>
            {
                returned.Add(result);
                valid.Add(string.Concat(returned.Select(tensor => tensor.IsInvalid ? '-' : '+')));
            });
        }

        Tensor hidden = subject.Step(Subject.Ids(1, 61, seed: 2), 0, 61, subject.NewConversation());
        Assert.That(valid, Is.EqualTo(most < 61 ? new[] { "+", "-+", "--+", "---+" } : ["+", "++", "+++", "++++"]));
        Assert.That(hidden.isfinite().all().item<bool>());
    }

    [Test]
    public void ModulesThatAreCalledAloneFreeNothing()
    {
        using Subject subject = Subject.Make("genai");
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything);
        using IDisposable noGrad = no_grad();
        Tensor x = ones(1, Tokens, 4 * Subject.HeadDim);
        Tensor normed = subject.Model.modules().OfType<RMSNorm>().First().forward(x);
        Tensor output = subject.Model.modules().OfType<LlamaMLP>().First().forward(normed);
        Assert.That((x.IsInvalid, normed.IsInvalid, output.IsInvalid), Is.EqualTo((false, false, false)));
    }

    // Tells what a module returns.
    private sealed class Watched(ModuleReplacement inner, Action<Tensor> returned) : ModuleReplacement(inner.Original)
    {
        internal override object? Forward(IReplacedModule module, object?[] arguments)
        {
            object? result = inner.Forward(module, arguments);
            returned(result as Tensor ?? ((AttentionOutput)result!).HiddenStates);
            return result;
        }
    }
}
