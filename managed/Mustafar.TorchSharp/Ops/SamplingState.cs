using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// What <see cref="MustafarOps.Sample"/> needs to know about each sequence of a batch: its parameters, the number of tokens drawn, which
/// ones they were, and which are in its prompt.
/// </summary>
/// <remarks>All of it is in tensors on the device that stay in place, so calls can be captured into a CUDA graph.</remarks>
/// <example>
/// <code>
/// using SamplingState state = new(batchSize: 2, vocabSize, logits.device);
/// state.Restart(0, new SamplingParameters { Temperature = 0.7, TopP = 0.9, Seed = 1 }, promptIds);
/// state.Restart(1, SamplingParameters.Greedy, promptIds);
/// Tensor ids = MustafarOps.Sample(logits, state); // Int64 [2]
/// </code>
/// </example>
public sealed unsafe class SamplingState : IDisposable
{
    /// <summary>Makes the state of sequences that sample with the default parameters and have not drawn yet.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    /// <param name="vocabSize">Number of tokens in the vocabulary: 1 to 2²².</param>
    /// <param name="device">The device of the logits; the CPU if null.</param>
    /// <param name="penalties">Whether tokens are counted, as penalties need: 4 bytes on the device per token of the vocabulary
    /// and sequence.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public SamplingState(int batchSize, int vocabSize, torch.Device? device = null, bool penalties = true)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(batchSize);
        if (vocabSize is < 1 or > (1 << 22))
        {
            throw new ArgumentOutOfRangeException(nameof(vocabSize), vocabSize, "Expected 1 to 4194304 tokens.");
        }

        Device = TensorAccess.Resolve(device ?? CPU);
        BatchSize = batchSize;
        VocabSize = vocabSize;
        // Tensors made in inference mode could not be written outside it.
        using IDisposable mode = inference_mode(false);
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        Tensor options = zeros([batchSize, sizeof(NativeSamplingOptions)], dtype: ScalarType.Byte, device: Device);
        Tensor steps = zeros([batchSize], dtype: ScalarType.Int64, device: Device);
        Tensor? counts = penalties ? zeros([batchSize, vocabSize], dtype: ScalarType.Int32, device: Device) : null;
        Tensor? prompt = penalties ? zeros([batchSize, MustafarOps.Words(vocabSize)], dtype: ScalarType.Int32, device: Device) : null;
        Options = options.DetachFromDisposeScope();
        Steps = steps.DetachFromDisposeScope();
        Counts = counts?.DetachFromDisposeScope();
        Prompt = prompt?.DetachFromDisposeScope();
        SamplingParameters defaults = new();
        for (int b = 0; b < batchSize; b++)
        {
            Upload(b, defaults);
        }
    }

    /// <summary>Number of sequences.</summary>
    public int BatchSize { get; }

    /// <summary>Number of tokens in the vocabulary.</summary>
    public int VocabSize { get; }

    /// <summary>Device of the state.</summary>
    public torch.Device Device { get; }

    /// <summary>Int64 [batch]: the number of each sequence's next draw, incremented by each draw.</summary>
    internal Tensor Steps { get; }

    /// <summary>Byte [batch, bytes of the native struct].</summary>
    internal Tensor Options { get; }

    /// <summary>Int32 [batch, vocab_size]: how often each token was chosen. Null without penalties.</summary>
    internal Tensor? Counts { get; }

    /// <summary>Int32 [batch, ⌈vocab_size / 32⌉]: bits of the tokens in the prompt. Null without penalties.</summary>
    internal Tensor? Prompt { get; }

    internal bool IsDisposed { get; private set; }

    /// <summary>Restarts a row: its earlier draws are discarded.</summary>
    /// <param name="row">Its index in the batch.</param>
    /// <param name="parameters">How it samples from now on.</param>
    /// <param name="prompt">Tokens for the repetition penalty in addition to those it will draw, in any order and with repetitions.</param>
    /// <param name="chosen">Tokens that the text has already drawn, each as often as it was; penalties count them. Any order.</param>
    /// <param name="step">The number of its next draw, at least 0: a continued text continues with the following draws.</param>
    /// <exception cref="ArgumentOutOfRangeException">The row, a token or the step is out of range.</exception>
    /// <exception cref="ArgumentException">The parameters have penalties, but the state was made without them.</exception>
    /// <exception cref="ObjectDisposedException">The state was disposed.</exception>
    public void Restart(
        int row, SamplingParameters parameters, ReadOnlySpan<int> prompt = default, ReadOnlySpan<int> chosen = default, long step = 0)
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        ArgumentNullException.ThrowIfNull(parameters);
        ArgumentOutOfRangeException.ThrowIfNegative(step);
        if (row < 0 || row >= BatchSize)
        {
            throw new ArgumentOutOfRangeException(nameof(row), row, $"Expected 0 to {BatchSize - 1}.");
        }

        if (Counts is null && parameters.HasPenalties)
        {
            throw new ArgumentException("Expected no penalties, since this state was made without them.", nameof(parameters));
        }

        RequireTokens(prompt, nameof(prompt));
        RequireTokens(chosen, nameof(chosen));
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        Upload(row, parameters);
        Steps[row].copy_(tensor(step));
        Counts?[row].copy_(tensor(Counted(chosen)));
        Prompt?[row].copy_(tensor(Bits(prompt)));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        IsDisposed = true;
        Options.Dispose();
        Steps.Dispose();
        Counts?.Dispose();
        Prompt?.Dispose();
    }

    private int[] Counted(ReadOnlySpan<int> tokens)
    {
        int[] counts = new int[VocabSize];
        foreach (int token in tokens)
        {
            counts[token]++;
        }

        return counts;
    }

    private int[] Bits(ReadOnlySpan<int> tokens)
    {
        int[] words = new int[MustafarOps.Words(VocabSize)];
        foreach (int token in tokens)
        {
            words[token / MustafarOps.WordBits] |= 1 << (token % MustafarOps.WordBits);
        }

        return words;
    }

    private void RequireTokens(ReadOnlySpan<int> tokens, string name)
    {
        foreach (int token in tokens)
        {
            if (token < 0 || token >= VocabSize)
            {
                throw new ArgumentOutOfRangeException(name, token, $"Expected tokens from 0 to {VocabSize - 1}.");
            }
        }
    }

    private void Upload(int row, SamplingParameters parameters)
    {
        NativeSamplingOptions options = parameters.Native;
        byte[] bytes = new ReadOnlySpan<byte>(&options, sizeof(NativeSamplingOptions)).ToArray();
        Options[row].copy_(tensor(bytes));
    }
}
