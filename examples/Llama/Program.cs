using Mustafar.Examples.Llama.Commands;

return LlamaProgram.Run(
    args,
    Console.In,
    Console.Out,
    Console.Error,
    showProgress: !Console.IsErrorRedirected,
    inputIsTerminal: !Console.IsInputRedirected,
    outputIsTerminal: !Console.IsOutputRedirected);
