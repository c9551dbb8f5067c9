using System.Globalization;
using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.DropIn.Models.GenAI;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>What a long prompt needs beside the model's own tensors stays bounded.</summary>
[TestFixture]
[Platform("Linux")]
internal sealed class PromptMemoryTests : TensorFixture
{
    private const int Hidden = Subject.HeadDim;
    private const long MiB = 1 << 20;

    /// <summary>Each takes some 200 MiB and more for all tokens at once, and has an output of 32 MiB at most.</summary>
    [TestCase(nameof(RMSNorm), 256 * 1024)]
    [TestCase(nameof(LlamaMLP), 8 * 1024)]
    public void A_module_of_single_tokens_runs_over_some_at_a_time(string name, int tokens)
    {
        using IDisposable noGrad = no_grad();
        ScalarType dtype = name == nameof(RMSNorm) ? ScalarType.BFloat16 : ScalarType.Float32;
        using LlamaForCausalLM model = new(heads: 1, kvHeads: 1, dtype: dtype, sizes: new ModelSizes(Layers: 1, Intermediate: 4096));
        Tensor x = ones(1, tokens, Hidden, dtype: dtype);
        long own = PeakOf(() => Module().forward(x));
        using (MustafarAttachment attachment = model.UseMustafar())
        {
            Assert.That(Module(), Is.InstanceOf<IReplacedModule>());
            Assert.That(PeakOf(() => Module().forward(x)), Is.LessThan(own / 2));
        }

        Assert.That(own, Is.GreaterThan(150 * MiB), "without it");

        nn.Module<Tensor, Tensor> Module() => model.modules().OfType<nn.Module<Tensor, Tensor>>().First(module => module.GetType().Name == name);
    }

    /// <summary>Queries, keys and values of a prompt are as large as its hidden states, or larger.</summary>
    [Test]
    public void What_a_prompt_was_projected_to_is_freed_before_its_output_is_projected()
    {
        using OwnModel model = new(() => new OwnAttention(heads: 1));
        Watching adapter = new();
        using MustafarAttachment attachment = model.UseMustafar(null, adapter);
        (Tensor output, int length) = model.single.forward(randn(2, 50, Hidden), new OwnCache(), 0.2);
        Assert.That((output.IsInvalid, length, adapter.Calls), Is.EqualTo((false, 50, 1)));
        Assert.That(output.isfinite().all().item<bool>());
    }

    // The most bytes that the process had in memory during an action beyond those before it.
    private static long PeakOf(Action action)
    {
        using DisposeScope scope = NewDisposeScope();
        GC.Collect();
        File.WriteAllText("/proc/self/clear_refs", "5"); // forgets the peak of before
        long before = Peak();
        action();
        return Peak() - before;

        static long Peak()
        {
            string line = File.ReadLines("/proc/self/status").First(line => line.StartsWith("VmHWM:", StringComparison.Ordinal));
            return 1024 * long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], CultureInfo.InvariantCulture);
        }
    }

    private sealed class Watching : AttentionAdapter
    {
        private readonly OwnAdapter _own = new();
        private AttentionStep? _step;

        internal int Calls { get; private set; }

        public override bool Matches(nn.Module candidate) => _own.Matches(candidate);

        public override object? ConversationOf(nn.Module attention, IReadOnlyList<object?> arguments) => _own.ConversationOf(attention, arguments);

        public override AttentionStep Read(nn.Module attention, IReadOnlyList<object?> arguments) => _step = _own.Read(attention, arguments);

        public override object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result)
        {
            Tensor[] read = [_step!.Query, _step.Keys, _step.Values, _step.Mask!];
            Assert.That(read.Select(tensor => tensor.IsInvalid), Is.All.True);
            Calls++;
            return _own.Complete(attention, arguments, result);
        }
    }
}
