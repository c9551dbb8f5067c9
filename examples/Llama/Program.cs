using System.Text;
using Mustafar.Examples.Llama.Commands;

if (OperatingSystem.IsWindows())
{
    // By default its consoles and pipes use a code page of the system's language, which lacks most characters.
    Console.OutputEncoding = Console.InputEncoding = new UTF8Encoding(encoderShouldEmitUTF8Identifier: false);
}

return LlamaProgram.Run(
    args,
    Console.In,
    Console.Out,
    Console.Error,
    showProgress: !Console.IsErrorRedirected,
    inputIsTerminal: !Console.IsInputRedirected,
    outputIsTerminal: !Console.IsOutputRedirected);
