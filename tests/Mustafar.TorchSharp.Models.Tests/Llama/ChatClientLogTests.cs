using System.Diagnostics.Metrics;
using Microsoft.Extensions.AI;
using Microsoft.Extensions.Logging;
using Mustafar.Extensions.AI;
using Mustafar.Models.Generation;

namespace Mustafar.Tests.Llama;

/// <summary>What a service sees of the chat client: its log and its meters.</summary>
[TestFixture]
[NonParallelizable]
public sealed class ChatClientLogTests
{
    [Test]
    public async Task RequestsAreLoggedAndMeasured()
    {
        using RecordingLog log = new();
        Dictionary<string, List<double>> measured = [];
        using MeterListener listener = new()
        {
            InstrumentPublished = (instrument, self) =>
            {
                if (instrument.Meter.Name is GenerationMetrics.MeterName or MustafarMetrics.MeterName)
                {
                    self.EnableMeasurementEvents(instrument);
                }
            },
        };
        listener.SetMeasurementEventCallback<long>((instrument, value, _, _) => Record(instrument, value));
        listener.SetMeasurementEventCallback<double>((instrument, value, _, _) => Record(instrument, value));
        listener.Start();
        using (LlamaChatClient client = LlamaChatClient.Load(
            Golden.Checkpoint,
            new LlamaChatClientOptions { ChatTemplate = "llama3", DType = TorchSharp.torch.ScalarType.Float32, LoggerFactory = log }))
        {
            string text = string.Concat(Enumerable.Repeat("def add(a, b):\n    return a + b\n", 12));
            ChatResponse response = await client.GetResponseAsync(text, new ChatOptions { MaxOutputTokens = 12 });
            Assert.That(
                async () => await client.GetResponseAsync(new string('x', 100_000)), Throws.ArgumentException, "too long for the model");
            listener.RecordObservableInstruments();
            using (Assert.EnterMultipleScope())
            {
                Assert.That(log.Lines.Select(line => line.Level), Is.EqualTo(new[] { LogLevel.Information, LogLevel.Debug, LogLevel.Information, LogLevel.Warning }));
                Assert.That(log.Lines[0].Text, Does.Contain("pyllama-14m").And.Contain("Float32").And.Contain("compressed"));
                Assert.That(log.Lines[2].Text, Does.Contain($"read {response.Usage!.InputTokenCount} tokens").And.Contain("generated 12"));
                Assert.That(log.Lines.Select(line => line.Text), Has.None.Contain("return"), "nothing of the chat");
                Assert.That(measured["mustafar.generation.prompt_tokens"].Sum(), Is.EqualTo(response.Usage.InputTokenCount));
                Assert.That(measured["mustafar.generation.tokens"].Sum(), Is.EqualTo(11), "the first token follows from the prompt");
                Assert.That(measured["mustafar.generation.step.duration"], Has.Count.EqualTo(11).And.All.Positive);
                Assert.That(measured["mustafar.generation.rate"], Has.Count.EqualTo(11).And.All.Positive);
                Assert.That(measured["mustafar.generation.prefill.duration"], Has.Count.EqualTo(1).And.All.Positive);
                Assert.That(measured["mustafar.cache.compressed_tokens"].Sum(), Is.Positive.And.EqualTo(64 * (((long)response.Usage.InputTokenCount! + 11 - 32) / 64)));
                Assert.That(measured["mustafar.cache.reserved"].Sum(), Is.Positive);
                Assert.That(measured["mustafar.cache.used"].Sum(), Is.Positive.And.LessThanOrEqualTo(measured["mustafar.cache.reserved"].Sum()));
            }
        }

        void Record(Instrument instrument, double value)
        {
            lock (measured)
            {
                if (!measured.TryGetValue(instrument.Name, out List<double>? values))
                {
                    measured.Add(instrument.Name, values = []);
                }

                values.Add(value);
            }
        }
    }

    [Test]
    public async Task ACancelledRequestIsLogged()
    {
        using RecordingLog log = new();
        using LlamaChatClient client = LlamaChatClient.Load(
            Golden.Checkpoint, new LlamaChatClientOptions { ChatTemplate = "llama3", LoggerFactory = log });
        await foreach (ChatResponseUpdate update in client.GetStreamingResponseAsync("import os"))
        {
            break;
        }

        for (int i = 0; i < 500 && log.Lines.Count < 3; i++)
        {
            await Task.Delay(10);
        }

        Assert.That(log.Lines[^1].Text, Does.EndWith("cancelled."));
    }

    private sealed class RecordingLog : ILoggerFactory, ILogger
    {
        private readonly List<(LogLevel Level, string Text)> _lines = [];

        internal IReadOnlyList<(LogLevel Level, string Text)> Lines
        {
            get
            {
                lock (_lines)
                {
                    return [.. _lines];
                }
            }
        }

        public ILogger CreateLogger(string categoryName)
        {
            Assert.That(categoryName, Is.EqualTo(typeof(LlamaChatClient).FullName));
            return this;
        }

        public void AddProvider(ILoggerProvider provider) => throw new NotSupportedException();

        public bool IsEnabled(LogLevel logLevel) => true;

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public void Log<TState>(
            LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
        {
            lock (_lines)
            {
                _lines.Add((logLevel, formatter(state, exception)));
            }
        }

        public void Dispose()
        {
        }
    }
}
